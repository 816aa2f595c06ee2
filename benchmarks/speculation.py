"""What guessing tokens saves: tokens a pass and speed with and without it, in one run.

    python benchmarks/speculation.py --model MODEL --text TEXT [--draft-model DIR]

Three tasks, from places of the text: to copy (a passage, then its beginning once more), to
go on with prose, both greedily, and one where nothing matches (a high temperature, so that
what is said is noise). Runs with and without guesses take turns. Prints medians of pairwise
ratios, by the clock and in CPU seconds of the process, which other work on the machine
hardly changes; and checks that the tokens are the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from configs.resolve import Layers
from inference.drafts import DraftModel
from inference.events import Finished
from inference.load import LoadedModel
from inference.request import GenerationOptions, SamplingOptions, TokenRequest
from inference.session import Session, open_session

GREEDY = SamplingOptions(temperature=0.0)
NOISE = SamplingOptions(temperature=4.0, top_p=1.0, seed=1)

Run = tuple[float, float, Finished, list[str]]


def requests(session: Session, text: str, tokens: int, task: str, count: int) -> list[TokenRequest]:
    """The requests of a task."""
    if session.tokenizer is None:
        raise SystemExit("the model has no tokenizer")
    ids = session.tokenizer.encode_text(text)
    step = len(ids) // count
    if step < 400:
        raise SystemExit("the text is too short")
    options = GenerationOptions(NOISE if task == "nothing" else GREEDY, tokens, ignore_eos=True)
    made = []
    for at in range(0, count * step, step):
        passage = ids[at : at + 300]
        prompt = [*passage, *passage[:40]] if task == "copying" else passage
        made.append(TokenRequest(f"{task} {at}", tuple(prompt), options))
    return made


def answer(session: Session, loaded: LoadedModel, request: TokenRequest) -> Run:
    """Seconds, CPU seconds and outcome of one answer."""
    engine = session.engine(loaded)
    wall, cpu = time.perf_counter(), time.process_time()
    events = list(engine.run([request]))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    last = events[-1]
    if not isinstance(last, Finished):
        raise SystemExit(f"no answer: {last}")
    return wall, cpu, last, [event.text for event in events if hasattr(event, "text")]


def compare(
    name: str,
    plain: Callable[[TokenRequest], Run],
    guessed: Callable[[TokenRequest], Run],
    asked: list[TokenRequest],
    repeats: int,
) -> None:
    """Run both in turn and print."""
    ratios: list[tuple[float, float]] = []
    passes, accepted, drafted, same = [], 0, 0, True
    for repeat in range(repeats + 1):
        for request in asked:
            one, other = plain(request), guessed(request)
            if not repeat:  # to warm up
                continue
            ratios.append((one[0] / other[0], one[1] / other[1]))
            passes.append(other[2].timings.tokens_per_pass or 0)
            accepted += other[2].usage.accepted_tokens or 0
            drafted += other[2].usage.drafted_tokens or 0
            same = same and one[3] == other[3]
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(
        f"{name:>24}: {statistics.mean(passes):5.2f} tokens a pass,"
        f" {accepted}/{drafted} guesses right,"
        f" speed x{wall:.2f} by the clock, x{cpu:.2f} in CPU time,"
        f" {'the same text' if same else 'OTHER TEXT'}",
        flush=True,
    )


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--text", type=Path, required=True)
    made.add_argument("--draft-model", type=Path)
    made.add_argument("--device", default="auto")
    made.add_argument("--dtype", default="auto")
    made.add_argument("--tokens", type=int, default=200)
    made.add_argument("--prompts", type=int, default=4)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--cost", type=float, help="of one guess of the draft model, in passes")
    args = made.parse_args()
    session = open_session(args.model, Layers().resolve())
    loaded = session.load(args.device, args.dtype, 1024)
    text = args.text.read_text("utf-8")
    draft = None
    if args.draft_model is not None:
        small = open_session(args.draft_model, Layers().resolve()).load(
            args.device, args.dtype, 1024
        )
        cost = args.cost or small.weight_bytes / loaded.weight_bytes
        draft = replace(loaded, draft=DraftModel(small.model, session.folder.vocabulary, cost))
    for task in ("copying", "prose", "nothing"):
        asked = requests(session, text, args.tokens, task, args.prompts)

        def plain(request: TokenRequest) -> Run:
            return answer(session, loaded, request)

        def lookup(request: TokenRequest) -> Run:
            options = replace(request.options, prompt_lookup=True)
            return answer(session, loaded, replace(request, options=options))

        compare(f"{task}, --prompt-lookup", plain, lookup, asked, args.repeats)
        if draft is not None:
            with_draft = draft

            def drafted(request: TokenRequest, with_draft: LoadedModel = with_draft) -> Run:
                return answer(session, with_draft, request)

            compare(f"{task}, --draft-model", plain, drafted, asked, args.repeats)


if __name__ == "__main__":
    main()
