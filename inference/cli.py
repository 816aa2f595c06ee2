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
    return commands.answer(args, layers, settings)


def _check_flags(args: argparse.Namespace, settings: Resolved) -> None:
    """Refuse what does not go together, before anything is opened."""
    if args.score and args.batch is not None:
        raise UsageError("--score", "does not go with --batch", "give one of them")
    if args.prompt is not None and args.prompt_file is not None:
        raise UsageError("--prompt-file", "does not go with --prompt", "give one of them")
    check_options(args, settings)
    system = settings.origin("generate.system")
    if args.raw and system.startswith("--"):
        raise UsageError(system, "does not go with --raw", "leave one of them out")
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
