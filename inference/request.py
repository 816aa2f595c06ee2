"""What is asked of a model: messages or a prompt, and how to sample the answer.

Owns the types that every entry point (one prompt, chat, batch, a server) fills
in, and their validation. Knows nothing of tokens, templates or devices.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field

from configs.errors import RequestError
from configs.schema import GenerateTable

_MAX_SEED = 2**64


def _number_between(option: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise RequestError(option, f"{value} is not between {low:g} and {high:g}")


def random_seed() -> int:
    """A seed for who gave none, short enough to be read and given again."""
    return secrets.randbits(32)


def check_text(where: str, text: str) -> str:
    """`text` itself, once it is known to be Unicode that can be written as UTF-8.

    Raises:
        RequestError: it holds a lone surrogate, as argv bytes that are not UTF-8
            and JSON's "\\ud800" do.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            where, f"is not valid Unicode (character {error.start + 1})", "give it as UTF-8"
        ) from None
    return text


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def __post_init__(self) -> None:
        check_text(f"message of {self.role}", self.content)


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is drawn; the order of the filters stands in `sampler`."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context: int = 20
    seed: int = field(default_factory=random_seed)

    def __post_init__(self) -> None:
        _number_between("temperature", self.temperature, 0.0, 100.0)
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError("top_p", f"{self.top_p} is not above 0 and at most 1")
        if self.top_k < 0:
            raise RequestError("top_k", f"{self.top_k} is negative", "0 turns it off")
        _number_between("min_p", self.min_p, 0.0, 1.0)
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0.0):
            raise RequestError(
                "repetition_penalty", f"{self.repetition_penalty} is not above 0", "1 turns it off"
            )
        if self.repetition_context < 1:
            raise RequestError("repetition_context", f"{self.repetition_context} is below 1")
        if not 0 <= self.seed < _MAX_SEED:
            raise RequestError("seed", f"{self.seed} is not between 0 and 2^64 - 1")


@dataclass(frozen=True)
class GenerationOptions:
    """Sampling, and when to stop."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int = 512
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError("max_tokens", f"{self.max_tokens} is below 1")
        for text in self.stop:
            if not text:
                raise RequestError("stop", "an empty stop string would end every answer")
            check_text("stop", text)

    @classmethod
    def from_table(cls, table: GenerateTable) -> GenerationOptions:
        """The options that the resolved configuration asks for."""
        sampling = SamplingOptions(
            temperature=table.temperature,
            top_p=table.top_p,
            top_k=table.top_k,
            min_p=table.min_p,
            repetition_penalty=table.repetition_penalty,
            repetition_context=table.repetition_context,
            seed=random_seed() if table.seed is None else table.seed,
        )
        return cls(sampling, table.max_tokens, table.stop)


@dataclass(frozen=True)
class Request:
    """One answer asked for: a conversation, or (`messages` empty) plain text to go on with."""

    id: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    options: GenerationOptions = field(default_factory=GenerationOptions)

    def __post_init__(self) -> None:
        check_text("--prompt", self.text)
        said = "".join(m.content for m in self.messages if m.role == "user") + self.text
        if not said.strip():
            raise RequestError("--prompt", "is empty", "say something")


@dataclass(frozen=True)
class TokenRequest:
    """A request as the engine takes it: token ids in, token ids out.

    `stop_ids` end the answer and are not part of its text; `stop` are matched on text.
    """

    id: str
    prompt: tuple[int, ...]
    options: GenerationOptions
    stop_ids: frozenset[int] = frozenset()

    @property
    def length(self) -> int:
        """Most tokens of prompt and answer together."""
        return len(self.prompt) + self.options.max_tokens

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestError("--prompt", "gives no tokens")
