"""Grammars over a model's tokens: which of them may come next.

Owns what llguidance is told of a vocabulary. It is told the bytes of every token, and the
answer's text is made of the same bytes, so that what was checked is what is shown. Knows
nothing of models, requests or forms' syntax.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from configs.errors import GenerationError, RequestError
from inference.forms import reason

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from inference.tokenizer import Tokenizer

_KEPT = 256  # grammars


class Vocabulary:
    """A model's tokens as grammars see them.

    Args:
        tokenizer: The model's.
        size: Rows of its embedding; those without a token are never allowed.
        control: Tokens that are no text, by theirs.
        eos_ids: Tokens that end an answer.
    """

    def __init__(
        self, tokenizer: Tokenizer, size: int, control: Iterable[str], eos_ids: Iterable[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._control = frozenset(control)
        self._eos_ids = sorted(token for token in eos_ids if token < size)
        self._matchers: dict[str, LLMatcher] = {}
        self._others: dict[frozenset[int], mx.array] = {}

    def grammar(self, source: str) -> Grammar:
        """A grammar at its beginning.

        Raises:
            RequestError: It is too large for llguidance.
        """
        from llguidance import LLMatcher

        first = self._matchers.get(source)
        if first is None:
            first = LLMatcher(self._backend, source, log_level=0)
            if first.is_error():
                raise RequestError("grammar", reason(first.get_error()))
            if len(self._matchers) >= _KEPT:
                self._matchers.clear()
            self._matchers[source] = first
        return Grammar(first.deep_copy(), self.bytes, self._size)

    @cached_property
    def bytes(self) -> list[bytes]:
        """The bytes of each token; b"" for one that has none."""
        from inference.token_text import TokenTexts

        texts = TokenTexts(self._tokenizer)
        known = min(self._tokenizer.highest_id + 1, self._size)
        return [texts.bytes(token) for token in range(known)]

    def others(self, left_out: Collection[int]) -> mx.array:
        """All tokens that have a text but for some: [vocabulary], bool."""
        key = frozenset(left_out)
        if key not in self._others:
            known = [token not in key and bool(data) for token, data in enumerate(self.bytes)]
            self._others[key] = mx.array(known + [False] * (self._size - len(known)))
        return self._others[key]

    @cached_property
    def _backend(self) -> Any:
        from llguidance import LLTokenizer

        encode = self._tokenizer.encode_plain
        tokens: Any = _Tokens(self.bytes, self._special, self._eos_ids, encode)
        return LLTokenizer(tokens, eos_token=self._eos)

    @cached_property
    def _special(self) -> list[int]:
        ids = (self._tokenizer.id_of(text) for text in self._control)
        return sorted({id_ for id_ in ids if id_ is not None and id_ < len(self.bytes)})

    @property
    def _eos(self) -> list[int]:
        # A model without any gets one that it can't say.
        return self._eos_ids or [len(self.bytes)]


class Grammar:
    """What one answer may go on with.

    Args:
        matcher: At the beginning.
        texts: The bytes of each token.
        size: Of the model's vocabulary.
    """

    def __init__(self, matcher: LLMatcher, texts: Sequence[bytes], size: int) -> None:
        self._matcher = matcher
        self._texts = texts
        self._size = size

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> mx.array:
        """The tokens that may come next: [vocabulary], bool.

        Raises:
            GenerationError: There is none.
        """
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise _broken(self._matcher.get_error())
        if not any(bits):
            raise _broken("the vocabulary has no token for what must follow")
        view: Any = memoryview(bits).cast("I")
        words = mx.array(view)
        each = (words[:, None] >> mx.arange(32, dtype=mx.uint32)) & 1
        # Beyond the texts stands the end that a model without any can't say.
        flat = each.reshape(-1)[: len(self._texts)].astype(mx.bool_)
        return mx.pad(flat, (0, self._size - flat.size)) if flat.size < self._size else flat

    def push(self, token: int) -> bytes:
        """Go on with a token; its bytes.

        Raises:
            GenerationError: It may not come here.
        """
        if not self._matcher.consume_token(token):
            raise _broken(self._matcher.get_error())
        return self._texts[token]


class _Tokens:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self,
        tokens: list[bytes],
        special: list[int],
        eos_ids: list[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        self._texts = tokens
        self._encode = encode
        self.tokens = tokens if eos_ids else [*tokens, b"<eos>"]
        self.eos_token_id = eos_ids[0] if eos_ids else len(tokens)
        self.special_token_ids = sorted({*special, *(eos_ids or [len(tokens)])})

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that must follow, as the model would write it."""
        ids, data = self._encode(text), text.encode()
        known = all(token < len(self._texts) for token in ids)
        if known and b"".join(self._texts[token] for token in ids) == data:
            return ids
        # A tokenizer that changes the text, by a space in front for instance.
        made: list[int] = []
        while data:
            lengths = range(min(self._longest, len(data)), 0, -1)
            length = next((n for n in lengths if data[:n] in self._by_text), None)
            if length is None:
                return made
            made.append(self._by_text[data[:length]])
            data = data[length:]
        return made

    @cached_property
    def _by_text(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {t: n for n, t in enumerate(self._texts) if t and n not in special}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_text), default=1)


def _broken(why: str) -> GenerationError:
    what = f"can't go on in the form that is asked for ({reason(why)})"
    return GenerationError("model", what, "ask for a simpler one")
