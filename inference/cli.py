"""The command `infer`: flags in, an answer on stdout, an exit code out.

Owns the flags, which of them go together, and what is printed. Imports nothing heavy
before the flags are known to be right.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.arguments import Parser, add_common, add_key
from configs.command import note, run, warn
from configs.errors import RequestError, SourceError, UsageError

if TYPE_CHECKING:
    from configs.resolve import Layers, Resolved
    from inference.load import LoadedModel
    from inference.request import Request
    from inference.session import Session

_LARGEST_PROMPT = 256 * 2**20
_GENERATE_FLAGS = {
    "--temperature": ("generate.temperature", "0 takes the most probable token each time"),
    "--top-p": ("generate.top_p", "draw from the most probable tokens that together have this"),
    "--top-k": ("generate.top_k", "draw from this many most probable tokens; 0: all"),
    "--min-p": ("generate.min_p", "leave out tokens below this share of the best one's"),
    "--repetition-penalty": ("generate.repetition_penalty", "above 1: avoid what was just said"),
    "--max-tokens": ("generate.max_tokens", "longest answer, in tokens"),
    "--seed": ("generate.seed", "same seed, same text; a new one each time when not given"),
    "--stop": ("generate.stop", "end the answer before this text; may be repeated"),
}


def parser() -> Parser:
    """The command line."""
    made = Parser(
        "infer",
        "Run an MLX model folder: one prompt in, one answer out.",
        'infer --model mlx_models/Qwen3-8B-4bit --prompt "Why is the sky blue?" --stream',
    )
    group = made.group("model")
    group.add_argument("--model", metavar="DIR|HUB_ID", help="model folder, or hub id of one")
    group.add_argument(
        "--device", choices=("auto", "gpu", "cpu"), default="auto", help="(default: auto)"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float16", "bfloat16", "float32"),
        default="auto",
        help="compute in this type; auto: the model's own on a GPU, float32 on the CPU"
        " (default: auto)",
    )
    group = made.group("prompt")
    group.add_argument("--prompt", metavar="TEXT|-", help="what to answer; - reads it from stdin")
    group.add_argument("--prompt-file", metavar="FILE", help="read it from a file, as UTF-8")
    add_key(group, "--system", key="generate.system", help="the system message")
    group.add_argument(
        "--raw", action="store_true", help="go on with the text itself, without chat template"
    )
    group = made.group("generation")
    for name, (key, text) in _GENERATE_FLAGS.items():
        add_key(group, name, key=key, help=text)
    group.add_argument("--stream", action="store_true", help="show the answer as it comes")
    group = made.group("scoring")
    group.add_argument(
        "--score", action="store_true", help="log-probabilities of a text in place of an answer"
    )
    group.add_argument("--ids-file", metavar="FILE", help="the text as a JSON array of token ids")
    add_common(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; give its exit code."""
    return run(_infer, argv)


def _infer(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    from configs.loader import read_layers

    layers = read_layers(args)
    settings = layers.resolve()
    _check_flags(args, settings)
    if args.show_config and args.json:
        raise UsageError(
            "--json", "does not go with --show-config, which prints TOML", "leave it out"
        )
    if args.show_config:
        print(_recommended(args, layers, settings).show(), end="")
        return 0
    if args.score:
        if args.ids_file is None:
            raise UsageError("--score", "needs the text to score", "give --ids-file")
        return _score(args, layers, settings)
    return _generate(args, layers, settings)


def _check_flags(args: argparse.Namespace, settings: Resolved) -> None:
    """Refuse what does not go together, before anything is opened."""
    if args.prompt is not None and args.prompt_file is not None:
        raise UsageError("--prompt-file", "does not go with --prompt", "give one of them")
    if not args.score:
        if args.ids_file is not None:
            raise UsageError("--ids-file", "goes with --score only", "add --score")
        system = settings.origin("generate.system")
        if args.raw and system.startswith("--"):
            raise UsageError(system, "does not go with --raw", "leave one of them out")
        return
    unused = [name for name in ("prompt", "prompt_file", "raw", "stream") if getattr(args, name)]
    flags = [f"--{name.replace('_', '-')}" for name in unused]
    keys = [("--system", "generate.system"), *((f, k) for f, (k, _) in _GENERATE_FLAGS.items())]
    flags += [flag for flag, key in keys if settings.origin(key) == flag]
    if flags:
        raise UsageError(flags[0], "means nothing with --score", "leave it out")


def _generate(args: argparse.Namespace, layers: Layers, settings: Resolved) -> int:
    text = _read_prompt(args)
    name, folder = _find_model(args, settings)
    session = _open(args, layers, folder)
    asked = session.tokenize(_request(args, session, text))
    if args.verbose:
        _describe_session(session)
    loaded = _load(args, session, asked.length)

    from inference.device import allocating, wired
    from inference.render import choose
    from inference.session import describe_run
    from inference.statistics import describe
    from inference.terminal import Output

    about = describe_run(name, loaded)
    render = choose(stream=args.stream, as_json=args.json)
    with wired(loaded.placement), allocating():
        finished = render(session.engine(loaded).run([asked]), Output.stdout(), about)
    if not args.quiet:
        sampling = asked.options.sampling
        note(describe(finished, about, sampling.seed if sampling.temperature > 0 else None))
    if finished.error is not None:
        raise finished.error
    return 0


def _describe_session(session: Session) -> None:
    template = session.template
    note(f"folder: {session.folder.path}")
    note(f"chat template: {'none' if template is None else template.where}")
    note(f"context: {session.context or 'not limited'}")


def _request(args: argparse.Namespace, session: Session, text: str) -> Request:
    from inference.request import GenerationOptions, Message, Request

    table = session.settings.generate
    options = GenerationOptions.from_table(table)
    if args.raw or (session.template is None and table.system is None):
        return Request("0", text=text, options=options)
    system = () if table.system is None else (Message("system", table.system),)
    return Request("0", messages=(*system, Message("user", text)), options=options)


def _score(args: argparse.Namespace, layers: Layers, settings: Resolved) -> int:
    ids = _read_ids(Path(args.ids_file))
    name, folder = _find_model(args, settings)
    session = _open(args, layers, folder, need_tokenizer=False)
    session.check_ids(ids)
    loaded = _load(args, session, len(ids))

    from inference.device import allocating, wired
    from inference.report import fields, table
    from inference.session import describe_run
    from inference.terminal import Output

    about = describe_run(name, loaded)
    with wired(loaded.placement), allocating():
        score = session.score(loaded, ids)
    output = Output.stdout()
    if args.json:
        output.json(fields(score, session.tokenizer, about))
    else:
        output.text(table(score, session.tokenizer))
    if not args.quiet:
        note(about.describe())
    return 0


def _open(
    args: argparse.Namespace, layers: Layers, folder: Path, *, need_tokenizer: bool = True
) -> Session:
    from inference.session import open_session, with_recommendations

    settings = with_recommendations(layers, folder)
    session = open_session(folder, settings, need_tokenizer=need_tokenizer)
    if not args.quiet:
        for warning in session.folder.catalog.warnings:
            warn(warning)
    return session


def _load(args: argparse.Namespace, session: Session, length: int) -> LoadedModel:
    loaded = session.load(args.device, args.dtype, length)
    if loaded.placement.slow and not args.quiet:
        warn(f"--dtype {args.dtype}: the CPU computes many times faster in float32")
    return loaded


def _find_model(args: argparse.Namespace, settings: Resolved) -> tuple[str, Path]:
    """The model's name, as the user gave it, and its folder here."""
    name, revision = _model_name(args, settings)
    if args.model is None and settings.model.path is None and Path(name) == _local(settings):
        mend = f"make it with convert --config {args.config}" if args.config else "give --model"
        raise UsageError("--model", f"the model in {name} is not converted yet", mend)
    from checkpoint.source import resolve_source

    return name, resolve_source(name, revision).path


def _local(settings: Resolved) -> Path | None:
    """The source, if it is a folder here."""
    source = settings.model.source
    return Path(source) if source is not None and Path(source).is_dir() else None


def _model_name(args: argparse.Namespace, settings: Resolved) -> tuple[str, str | None]:
    """`--model`, else what the config describes: its folder, or where that comes from."""
    model = settings.model
    if args.model is not None:
        return str(args.model), None
    if model.path is not None:
        return str(model.path), None
    if model.source is None:
        raise UsageError("--model", "no model given", "give a folder or a hub id, or a --config")
    converted = settings.default_folder(settings.convert.dtype or "bfloat16")
    if converted.is_dir():
        return str(converted), None
    return model.source, model.revision


def _recommended(args: argparse.Namespace, layers: Layers, settings: Resolved) -> Resolved:
    """The settings that a run would have, as far as the model is here already."""
    if args.model is None and settings.model.path is None and settings.model.source is None:
        return settings
    from inference.session import with_recommendations

    name, _ = _model_name(args, settings)
    folder = Path(name)
    return with_recommendations(layers, folder) if folder.is_dir() else settings


def _read_prompt(args: argparse.Namespace) -> str:
    """The prompt's text, exactly as it is given.

    Raises:
        RequestError: There is none, it is blank, or it is not UTF-8.
    """
    if args.prompt_file is not None:
        where = args.prompt_file
        with Path(where).open("rb") as file:
            data = file.read(_LARGEST_PROMPT + 1)
    elif args.prompt == "-":
        where = "stdin"
        if sys.stdin is None:
            raise UsageError("--prompt -", "stdin is closed", "give --prompt TEXT")
        data = sys.stdin.buffer.read(_LARGEST_PROMPT + 1)
    elif args.prompt is None:
        raise UsageError("--prompt", "no prompt given", "give --prompt TEXT, or - for stdin")
    else:
        from inference.request import check_text

        where, data = "--prompt", check_text("--prompt", args.prompt).encode()
    if len(data) > _LARGEST_PROMPT:
        raise RequestError(where, f"is larger than {_LARGEST_PROMPT} bytes", "shorten it")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            where, f"is not valid Unicode (byte {error.start + 1})", "give it as UTF-8"
        ) from error
    if not text.strip():
        raise RequestError(where, "is blank", "say something")
    return text


def _read_ids(path: Path) -> list[int]:
    from checkpoint.disk import read_whole
    from checkpoint.json_file import parse

    found: Any = parse(read_whole(path, _LARGEST_PROMPT), path)
    if not isinstance(found, list) or not found:
        raise SourceError(path, "is not a JSON array of token ids", "write [1, 2, 3]")
    for item in found:
        if isinstance(item, bool) or not isinstance(item, int):
            raise SourceError(path, f"holds {item!r}, which is not a token id", "write [1, 2, 3]")
    return found
