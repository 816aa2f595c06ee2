"""The one event stream in the forms that a user can ask for.

Every renderer takes the events of the answers to one prompt and returns how each of them
ended. Plain and streamed text are the same bytes: the answer, then one newline that is
not part of it. Of several answers, a line such as `--- 2/4` stands before each but the
first. Knows nothing of engines or models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.errors import FerryError
from inference.events import Aside, Delta, Event, Failed, Finished, Started, Token
from inference.request import TokenRequest
from inference.statistics import Run, answer_fields, error_fields
from inference.terminal import Output
from inference.tool_calls import Calls

Renderer = Callable[[Iterable[Event], Output, "Asked"], list[Finished]]


@dataclass(frozen=True)
class Asked:
    """What the events answer.

    Attributes:
        run: What the answers share.
        requests: One for each answer, in the order of their choices.
        token_fields: The JSON fields of a token by itself: its id, text and bytes.
        several: Whether JSON lists the answers as choices, be it only one.
    """

    run: Run
    requests: Sequence[TokenRequest]
    token_fields: Callable[[int], dict[str, Any]] | None = None
    several: bool = False


def choose(*, stream: bool, as_json: bool) -> Renderer:
    """The renderer for the flags."""
    if as_json:
        return render_json_lines if stream else render_json
    return render_stream if stream else render_plain


def render_stream(events: Iterable[Event], output: Output, asked: Asked) -> list[Finished]:
    """Each piece of text as it comes; of one answer alone, since several would mix."""
    answers = _Answers(asked)
    try:
        for event in events:
            answers.take(event)
            if isinstance(event, Delta):
                output.text(event.text)
    finally:
        output.text("\n")
    return answers.ended()


def render_plain(events: Iterable[Event], output: Output, asked: Asked) -> list[Finished]:
    """Each text once it is whole, or as far as it came when it is interrupted."""
    answers = _Answers(asked)
    shown = 0
    try:
        for event in events:
            answers.take(event)
            while shown < len(answers.all) and answers.all[shown].over:
                shown += 1
                output.text(answers.block(shown - 1))
    finally:
        while shown < len(answers.all) and (shown == 0 or answers.all[shown].pieces):
            shown += 1
            output.text(answers.block(shown - 1))
    return answers.ended()


def render_json(events: Iterable[Event], output: Output, asked: Asked) -> list[Finished]:
    """One object: the first answer's fields, and with several all of them as `choices`."""
    answers = _Answers(asked)
    for event in events:
        answers.take(event)
    first = answers.all[0]
    if not asked.several:
        answers.ended()
    fields = {**first.fields(asked.run), **asked.run.fields()}
    if asked.several:
        fields["choices"] = [
            {"index": index, **answer.fields(asked.run)} for index, answer in enumerate(answers.all)
        ]
    output.json(fields)
    return answers.ended()


def render_json_lines(events: Iterable[Event], output: Output, asked: Asked) -> list[Finished]:
    """One object a line for each event; with several answers each names its choice."""
    answers = _Answers(asked)
    for event in events:
        answer = answers.take(event)
        choice = {"choice": answer.request.choice} if asked.several else {}
        match event:
            case Started():
                line = {"type": "started", "prompt_tokens": event.prompt_tokens}
                line |= {"seed": answer.seed, **asked.run.fields()}
            case Delta():
                line = {"type": "delta", "text": event.text, **answer.new_tokens()}
            case Aside():
                if not (told := answer.new_aside(event)):
                    continue
                line = {"type": "delta", "text": "", **told}
            case Token():
                continue
            case Finished():
                # Tokens that gave no text, as the one that ended the answer.
                if tokens := answer.new_tokens():
                    output.json({"type": "delta", **choice, "text": "", **tokens})
                line = {"type": "finished", **answer_fields(event, asked.run)}
                if answer.request.options.tools is not None:
                    line |= answer.calls.fields()
                line |= {"seed": answer.seed, **asked.run.fields()}
            case Failed():
                line = {"type": "failed", "error": error_fields(event.error)}
        output.json({"type": line.pop("type"), **choice, **line})
    return answers.ended()


@dataclass
class Answer:
    """One answer as it grows."""

    request: TokenRequest
    token_fields: Callable[[int], dict[str, Any]] | None
    pieces: list[str] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    finished: Finished | None = None
    error: FerryError | None = None
    thoughts: list[str] = field(default_factory=list)
    calls: Calls = field(default_factory=Calls)
    _told: int = 0

    @property
    def over(self) -> bool:
        return self.finished is not None or self.error is not None

    @property
    def seed(self) -> int | None:
        """The seed that gives this answer alone; None where nothing is drawn."""
        sampling = self.request.options.sampling
        return None if sampling.greedy else sampling.seed

    def take(self, event: Event) -> None:
        match event:
            case Delta():
                self.pieces.append(event.text)
            case Token():
                named = self._token(event.id, event.logprob)
                top = [self._token(*each) for each in event.top]
                self.tokens.append({**named, "top": top})
            case Aside():
                if event.kind == "thinking":
                    self.thoughts.append(event.text)
                else:
                    self.calls.take(event.text, self.request.sections)
            case Finished():
                self.finished = event
            case Failed():
                self.error = event.error

    def fields(self, run: Run) -> dict[str, Any]:
        if self.finished is None:
            return {} if self.error is None else {"error": error_fields(self.error)}
        made = {"text": "".join(self.pieces), **answer_fields(self.finished, run)}
        if self._thinks:
            made["thinking"] = self.thinking
        if self.request.options.tools is not None:
            made |= self.calls.fields()
        made["seed"] = self.seed
        if self.request.options.logprobs is not None:
            made["logprobs"] = self.tokens
        return made

    @property
    def thinking(self) -> str:
        """What was thought, in one text."""
        return "".join(self.thoughts).strip()

    @property
    def _thinks(self) -> bool:
        """Whether thoughts are told apart, and to be told."""
        sections = self.request.sections
        marked = sections is not None and sections.thinking is not None
        return marked and self.request.options.thinking != "hide"

    def new_aside(self, event: Aside) -> dict[str, Any]:
        """What was said beside the text, as fields of a line; none of it if it is hidden."""
        if event.kind == "thinking":
            return {"thinking": event.text} if self._thinks else {}
        return self.calls.last

    def new_tokens(self) -> dict[str, Any]:
        """Those not told yet, as a field; none of it without any."""
        new, self._told = self.tokens[self._told :], len(self.tokens)
        return {"logprobs": new} if new else {}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        named = {"id": token} if self.token_fields is None else self.token_fields(token)
        return {**named, "logprob": logprob}


class _Answers:
    """All answers to one prompt, told apart by the request that an event names."""

    def __init__(self, asked: Asked) -> None:
        self.all = [Answer(request, asked.token_fields) for request in asked.requests]
        self._by_id = {answer.request.id: answer for answer in self.all}

    def take(self, event: Event) -> Answer:
        answer = self._by_id[event.request]
        answer.take(event)
        return answer

    def block(self, index: int) -> str:
        """One answer as plain text shows it."""
        head = f"--- {index + 1}/{len(self.all)}\n" if index else ""
        return f"{head}{''.join(self.all[index].pieces)}\n"

    def ended(self) -> list[Finished]:
        """How each answer ended.

        Raises:
            FerryError: One could not be run.
        """
        finished = []
        for answer in self.all:
            if answer.error is not None:
                raise answer.error
            if answer.finished is None:
                raise RuntimeError("the event stream ended without an end of the answer")
            finished.append(answer.finished)
        return finished
