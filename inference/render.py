"""The one event stream in the forms that a user can ask for.

Every renderer takes the events of one request and returns how it finished. Plain and
streamed text are the same bytes: the answer, then one newline that is not part of it.
Knows nothing of engines or models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from inference.events import Delta, Event, Failed, Finished, Started
from inference.statistics import Run, finished_fields
from inference.terminal import Output

Renderer = Callable[[Iterable[Event], Output, Run], Finished]


def choose(*, stream: bool, as_json: bool) -> Renderer:
    """The renderer for the flags."""
    if as_json:
        return render_json_lines if stream else render_json
    return render_stream if stream else render_plain


def render_stream(events: Iterable[Event], output: Output, run: Run) -> Finished:
    """Each piece of text as it comes."""
    try:
        return _collect(events, output.text)
    finally:
        output.text("\n")


def render_plain(events: Iterable[Event], output: Output, run: Run) -> Finished:
    """The text once it is whole, or as far as it came when it is interrupted."""
    pieces: list[str] = []
    try:
        return _collect(events, pieces.append)
    finally:
        output.text("".join(pieces) + "\n")


def render_json(events: Iterable[Event], output: Output, run: Run) -> Finished:
    """One object."""
    pieces: list[str] = []
    finished = _collect(events, pieces.append)
    output.json({"text": "".join(pieces), **finished_fields(finished, run)})
    return finished


def render_json_lines(events: Iterable[Event], output: Output, run: Run) -> Finished:
    """One object a line for each event."""

    def told() -> Iterable[Event]:
        for event in events:
            output.json(_line(event, run))
            yield event

    return _collect(told(), lambda text: None)


def _collect(events: Iterable[Event], show: Callable[[str], None]) -> Finished:
    """Show the text and return the end.

    Raises:
        FerryError: The request failed.
    """
    finished: Finished | None = None
    for event in events:
        if isinstance(event, Delta):
            show(event.text)
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Finished):
            finished = event
    if finished is None:
        raise RuntimeError("the event stream ended without an end of the answer")
    return finished


def _line(event: Event, run: Run) -> dict[str, Any]:
    match event:
        case Started():
            return {"type": "started", "prompt_tokens": event.prompt_tokens, **run.fields()}
        case Delta():
            return {"type": "delta", "text": event.text}
        case Finished():
            return {"type": "finished", **finished_fields(event, run)}
        case Failed():
            error = {"message": str(event.error), "type": type(event.error).__name__}
            return {"type": "failed", "error": error}
