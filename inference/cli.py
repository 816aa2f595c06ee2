"""The command `infer`: flags in, an answer on stdout, an exit code out.

Owns which flags go together. Imports nothing heavy before they are known to be right.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs.command import run, say
from configs.errors import UsageError
from inference.flags import parser
from inference.options import check_options

if TYPE_CHECKING:
    from configs.resolve import Resolved


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; give its exit code."""
    return run(_infer, argv)


def _infer(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    from configs.loader import read_layers

    layers = read_layers(args)
    settings = layers.resolve()
    _check_flags(args, settings)
    if args.show_config:
        from inference.find import recommended

        say(recommended(args, layers, settings).show(), end="")
        return 0
    from inference import commands

    if args.score:
        return commands.score(args, layers, settings)
    if args.batch is not None:
        return commands.batch(args, layers, settings)
    if args.chat:
        return commands.chat(args, layers, settings)
    return commands.answer(args, layers, settings)


def _check_flags(args: argparse.Namespace, settings: Resolved) -> None:
    """Refuse what does not go together, before anything is opened."""
    modes = [
        name for name in ("chat", "score", "batch") if getattr(args, name) not in (None, False)
    ]
    if len(modes) > 1:
        raise UsageError(f"--{modes[0]}", f"does not go with --{modes[1]}", "give one of them")
    if args.prompt is not None and args.prompt_file is not None:
        raise UsageError("--prompt-file", "does not go with --prompt", "give one of them")
    check_options(args, settings)
    from inference.files import check_names

    check_names(args)
    start = settings.origin("memory.kv_start")
    if start.startswith("--") and settings.memory.kv_bits is None:
        raise UsageError(start, "says when to quantize the KV cache to --kv-bits", "add --kv-bits")
    system = settings.origin("generate.system")
    if args.raw and system.startswith("--"):
        raise UsageError(system, "does not go with --raw", "leave one of them out")
    for name in ("thinking", "thinking_budget", "tools"):
        origin = settings.origin(f"generate.{name}")
        if args.raw and origin.startswith("--"):
            raise UsageError(origin, "does not go with --raw", "leave one of them out")
    _check_asked(settings)
    texts = [name for name in ("prompt", "text_file", "ids_file") if getattr(args, name)]
    if args.score and len(texts) != 1:
        named = f"--{texts[1].replace('_', '-')}" if texts else "--score"
        what = "is a second text to score" if texts else "needs a text to score"
        raise UsageError(named, what, "give one of --prompt, --text-file and --ids-file")
    if args.output is None and args.force:
        raise UsageError("--force", "replaces nothing without --output", "leave it out")
    if args.show_config and args.json:
        raise UsageError(
            "--json", "does not go with --show-config, which prints TOML", "leave it out"
        )


def _check_asked(settings: Resolved) -> None:
    """Refuse a form or tools that nobody can read, before the model is looked for."""
    asked = settings.generate
    if asked.json_schema is not None or asked.regex is not None or asked.choice:
        from inference.forms import grammar_of

        grammar_of(asked.json_schema, asked.regex, asked.choice)
    if asked.tools is not None:
        from inference.tools import check_tools

        check_tools(asked.tools)
