"""What `infer` does once its flags are right: answer, chat, run a batch, score.

Owns the order of each: what can be refused is refused before the weights are read. What
is printed is the renderers' to say.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint import disk
from configs.command import note
from configs.errors import RequestError
from inference.files import check_place
from inference.find import load_model, open_model
from inference.inputs import read_ids, read_prompt

if TYPE_CHECKING:
    from configs.resolve import Layers, Resolved
    from inference.events import Event, Finished
    from inference.load import LoadedModel
    from inference.prompt_cache import PromptCache
    from inference.request import TokenRequest
    from inference.score import Score
    from inference.session import Session
    from inference.statistics import Run

_ANSWERS_AT_ONCE = 8


def answer(args: argparse.Namespace, layers: Layers, settings: Resolved) -> int:
    """One prompt, one answer or several."""
    text = read_prompt(args.prompt, args.prompt_file)
    _check_cache(args)
    name, session = open_model(args, layers, settings)
    from inference.request import GenerationOptions

    _tell_plain(args, session)
    options = GenerationOptions.from_table(session.settings.generate)
    request = session.request("0", text, options, raw=args.raw)
    requests = session.tokenize(request).answers()
    loaded = load_model(args, session, requests[0].length)

    from inference.device import allocating, wired
    from inference.render import Asked, choose
    from inference.session import describe_run
    from inference.statistics import describe, describe_several
    from inference.terminal import Output
    from inference.thoughts import for_person, warned

    about = describe_run(name, loaded)
    asked = Asked(
        about, requests, session.token_fields(), several=session.settings.given("generate.n")
    )
    render = choose(stream=args.stream, as_json=args.json)
    with wired(loaded.placement), allocating():
        engine = session.engine(loaded, min(len(requests), _ANSWERS_AT_ONCE))
        kept = _prompt_cache(args, session, loaded)
        asked_for: Iterable[TokenRequest] = requests
        if kept is not None:
            asked_for = kept.one(engine, requests, lambda: session.length_that_stays(request))
        events: Iterable[Event] = engine.run(asked_for)
        if args.json:
            events = warned(events, requests)
        else:
            events = for_person(events, requests, quiet=args.quiet)
        finished = render(events, Output.stdout(), asked)
    if not args.quiet:
        sampling = requests[0].options.sampling
        seed = None if sampling.greedy else sampling.seed
        one = len(finished) == 1
        note(describe(finished[0], about, seed) if one else describe_several(finished, about, seed))
        _tell_cut(finished, requests[0].options.max_tokens, session)
    error = next((each.error for each in finished if each.error is not None), None)
    if error is not None:
        raise error
    if kept is not None:
        kept.close()
    return 0


def _tell_plain(args: argparse.Namespace, session: Session) -> None:
    """Say that prompts are put to no template, where nobody asked for that."""
    if session.template is None and not args.raw and not args.quiet:
        note("the model has no chat template: it goes on with the text itself, as with --raw")


def _tell_cut(finished: Sequence[Finished], longest: int, session: Session) -> None:
    """Say where an answer ended because it was long enough, as nobody can see from its text."""
    cut = sum(event.reason == "length" for event in finished)
    if not cut:
        return
    lowered = longest < session.settings.generate.max_tokens
    mend = "the context has no room for more" if lowered else "--max-tokens allows more"
    what = "the answer was" if len(finished) == 1 else f"{cut} of {len(finished)} answers were"
    note(f"{what} cut after {longest} tokens: {mend}")


def batch(args: argparse.Namespace, layers: Layers, settings: Resolved) -> int:
    """A file of prompts; 1 if a row failed."""
    from inference.batch.source import open_source

    if args.output is not None:
        check_place(Path(args.output))
    source = open_source(Path(args.batch))
    _check_cache(args)
    name, session = open_model(args, layers, settings)
    _tell_plain(args, session)
    # How long the rows are is not known before they are read.
    loaded = load_model(args, session, session.context or 0)

    from inference.batch.command import run_batch
    from inference.device import allocating, wired

    with wired(loaded.placement), allocating():
        failed = run_batch(
            session,
            loaded,
            source,
            name,
            output=None if args.output is None else Path(args.output),
            raw=args.raw,
            force=args.force,
            quiet=args.quiet,
            kept=_prompt_cache(args, session, loaded),
        )
    return 1 if failed else 0


def chat(args: argparse.Namespace, layers: Layers, settings: Resolved) -> int:
    """A conversation, on a terminal or from a pipe."""
    if args.session is not None:
        check_place(Path(args.session))
    name, session = open_model(args, layers, settings)
    if session.template is None:
        where, mend = str(session.folder.path), "set tokenizer.chat_template, or use --raw --prompt"
        raise RequestError(where, "has no chat template", mend)
    # How long the conversation becomes is not known.
    loaded = load_model(args, session, session.context or 0)

    from inference.chat.run import run_chat
    from inference.device import wired
    from inference.session import describe_run

    with wired(loaded.placement):
        run_chat(
            session,
            loaded,
            describe_run(name, loaded),
            as_json=args.json,
            quiet=args.quiet,
            file=None if args.session is None else Path(args.session),
            with_cache=args.save_cache,
        )
    return 0


def score(args: argparse.Namespace, layers: Layers, settings: Resolved) -> int:
    """Log-probabilities of a text."""
    if args.html is not None:
        check_place(Path(args.html))
    ids = None if args.ids_file is None else read_ids(Path(args.ids_file))
    text = None if ids is not None else read_prompt(args.prompt, args.text_file)
    name, session = open_model(args, layers, settings, need_tokenizer=ids is None)
    if ids is None:
        ids = _encoded(session, text or "")
    if args.html is not None and session.tokenizer is None:
        what = "the folder has no tokenizer to show texts with"
        raise RequestError("--html", what, "copy tokenizer.json there")
    session.check_ids(ids)
    window = session.window(args.window, args.stride, len(ids))
    loaded = load_model(args, session, window or len(ids))

    from inference.device import allocating, wired
    from inference.session import describe_run

    about = describe_run(name, loaded)
    with wired(loaded.placement), allocating():
        found = session.score(loaded, ids, window, args.stride)
    try:
        if args.html is not None:
            _write_page(Path(args.html), found, session, about)
    finally:  # a page that can't be written costs nobody the score
        _print_score(found, session, about, as_json=args.json)
    if not args.quiet:
        note(about.describe())
    return 0


def _check_cache(args: argparse.Namespace) -> None:
    if args.prompt_cache is not None:
        from inference.prompt_cache import check_place

        check_place(Path(args.prompt_cache))


def _prompt_cache(
    args: argparse.Namespace, session: Session, loaded: LoadedModel
) -> PromptCache | None:
    if args.prompt_cache is None:
        return None
    from inference.prompt_cache import PromptCache

    return PromptCache(Path(args.prompt_cache), session, loaded, quiet=args.quiet)


def _encoded(session: Session, text: str) -> list[int]:
    if session.tokenizer is None:
        raise RequestError("--score", "the folder has no tokenizer", "give --ids-file")
    return session.tokenizer.encode_text(text)


def _print_score(found: Score, session: Session, about: Run, *, as_json: bool) -> None:
    """JSON, a coloured text on a terminal that has colours, or a table."""
    from inference.report import fields, table, texts, totals
    from inference.terminal import Output

    output, tokenizer = Output.stdout(), session.tokenizer
    if as_json:
        output.json(fields(found, tokenizer, about))
        return
    pieces = texts(found, tokenizer)
    if pieces is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        output.text(table(found, tokenizer))
        return
    from rich.console import Console

    from inference.heatmap import grouped, terminal_map

    Console().print(terminal_map(grouped(found, pieces)), soft_wrap=True)
    output.text(totals(found, pieces))


def _write_page(path: Path, found: Score, session: Session, about: Run) -> None:
    from inference.heatmap import grouped
    from inference.report import bits_per_byte, texts
    from inference.score_page import page

    pieces = texts(found, session.tokenizer) or []
    shown = page(found, grouped(found, pieces), about, bits_per_byte(found, pieces))
    disk.replace_whole(Path(os.path.realpath(path)), shown.encode())
