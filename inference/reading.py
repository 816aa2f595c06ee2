"""Which reader an answer gets, by what its request asks.

Owns what is told apart in an answer, as far as the model's tokenizer and template say, and
the making of readers. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from configs.errors import RequestError
from inference.reader import Reader, TextReader
from inference.request import GenerationOptions, TokenRequest
from inference.segments import Segment

if TYPE_CHECKING:
    from inference.sections import Sections
    from inference.structured import Vocabulary
    from inference.template import ChatTemplate
    from inference.tokenizer import Tokenizer


def sections_of(
    options: GenerationOptions, tokenizer: Tokenizer, template: ChatTemplate, prompt: list[Segment]
) -> Sections | None:
    """What to tell apart in the answer to a chat; None if it is all one text.

    Args:
        options: Of the request.
        tokenizer: The model's.
        template: The model's.
        prompt: The rendered chat.

    Raises:
        RequestError: An option asks for what the model does not have.
    """
    from inference.sections import Sections
    from inference.thinking import find_markers
    from inference.tools import find_parser

    def has_token(text: str) -> bool:
        return tokenizer.id_of(text) is not None

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode_segments([Segment(text)], ())) if text else ()

    source = template.source
    markers = find_markers(has_token, source)
    if options.thinking_budget is not None and markers is None:
        what = "this model has no thinking sections that are known here"
        raise RequestError("thinking_budget", what, "leave it out")
    parser = None
    if options.tools is not None:
        named = tokenizer.tool_parser
        parser = find_parser(options.tools, has_token, source, template.variables, named)
    if markers is None and parser is None:
        return None
    added = tokenizer.added
    if markers is None:
        return Sections(added, calls=parser)
    tail = prompt[-1].text.rstrip() if prompt and not prompt[-1].literal else ""
    opened, closed = tail.endswith(markers.start), tail.endswith(markers.end)
    start = ids(markers.start)
    return Sections(
        added,
        markers,
        opened,
        parser,
        start_ids=start,
        close_ids=ids(markers.close),
        after_ids=ids(markers.after),
        begins=not (opened or closed) and options.thinking != "off" and start[0] in added.texts,
    )


class Readers:
    """Makes the readers of one model's answers.

    Args:
        tokenizer: The model's.
        size: Of its vocabulary.
        control: Tokens that are no text, by theirs.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, control: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._control = control

    def make(self, request: TokenRequest) -> Reader:
        """The reader of one answer.

        Raises:
            RequestError: The form that it is to have is too large.
        """
        inner = self._plain(request)
        if not request.options.calculator:
            return inner
        from inference.calculator import CalculatorReader

        return CalculatorReader(inner, self._tokenizer, self._size)

    def _plain(self, request: TokenRequest) -> Reader:
        """The reader of an answer into which nothing is put."""
        options, sections = request.options, request.sections
        form = options.form
        if sections is None and form is None:
            # What is worked out would run into the rest without the tokens around it.
            decode = self._tokenizer.decode_all if options.calculator else self._tokenizer.decode
            return TextReader(decode, options.stop, options.min_tokens)
        from inference.sections import SectionReader, Sections

        sections = sections or Sections(self._tokenizer.added)
        inner = SectionReader(
            self._tokenizer.decode_all, sections, options.stop, options.min_tokens
        )
        if form is None and (options.thinking_budget is None or sections.thinking is None):
            return inner
        from inference.guide import GuidedReader

        left_out = request.stop_ids - {*sections.close_ids}
        return GuidedReader(
            inner,
            sections,
            self._size,
            budget=options.thinking_budget,
            grammar=None if form is None else self._vocabulary.grammar(form),
            thoughts=lambda: self._vocabulary.others(left_out),
        )

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from inference.structured import Vocabulary

        return Vocabulary(self._tokenizer, self._size, self._control, self._tokenizer.eos_ids)
