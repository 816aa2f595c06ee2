"""What is asked of a model: messages or a prompt, and how to sample the answer.

Owns the types that every entry point (one prompt, chat, batch, a server) fills
in, and their validation, by the checks of `configs.keys`. Knows nothing of
tokens' texts, templates or devices.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from configs.checks import InvalidValue
from configs.errors import RequestError
from configs.keys import KEYS
from configs.schema import GenerateTable
from inference.forms import grammar_of

if TYPE_CHECKING:
    from inference.sections import Sections


def random_seed() -> int:
    """A seed for who gave none, short enough to be read and given again."""
    return secrets.randbits(32)


def seed_of_answer(seed: int, answer: int) -> int:
    """The seed of one of several answers; the first has the request's own."""
    if answer == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} answer {answer}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")  # 48 bits: every JSON reader keeps them


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
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: What was said; "" beside calls alone.
        thinking: What the assistant thought before; whether the model is shown it is its
            template's to say.
        tool_calls: Calls that the assistant made, as OpenAI writes them, but for the
            arguments, which are no longer text.
        tool_call_id: The call that a tool's message answers.
        name: Of the tool.
        parts: The same content cut into parts of different types, for a template that knows
            them; empty where it is one text.
    """

    role: str
    content: str
    thinking: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    parts: tuple[Mapping[str, str], ...] = ()

    def __post_init__(self) -> None:
        where = f"message of {self.role}"
        for text in (self.content, self.thinking, self.tool_call_id, self.name):
            check_text(where, text or "")

    def fields(self, quote: Callable[[str], str]) -> dict[str, Any]:
        """As templates take it, with every text of it quoted."""
        content = quoted(list(self.parts), quote) if self.parts else quote(self.content)
        made: dict[str, Any] = {"role": self.role, "content": content}
        if self.thinking is not None:
            # Templates have two names for it.
            made["reasoning_content"] = made["thinking"] = quote(self.thinking)
        if self.tool_calls:
            made["tool_calls"] = quoted(list(self.tool_calls), quote)
        for name in ("tool_call_id", "name"):
            if (value := getattr(self, name)) is not None:
                made[name] = quote(value)
        return made


def quoted(value: Any, quote: Callable[[str], str]) -> Any:
    """A JSON value with every text in it quoted, the names of its fields too."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, Mapping):
        return {quote(str(name)): quoted(each, quote) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [quoted(each, quote) for each in value]
    return value


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is drawn: the keys of `[generate]` of these names.

    What each does stands in `configs.schema`, the order of the filters in `sampler`.

    Raises:
        RequestError: A value that its key can't take.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    repetition_context: int = 20
    presence_penalty: float = 0.0
    presence_context: int = 0
    frequency_penalty: float = 0.0
    frequency_context: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = field(default_factory=random_seed)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, and no random number is needed.

        Below this temperature float32 can't tell the rest from nothing.
        """
        return self.temperature < 1e-5

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class GenerationOptions:
    """Sampling, when to stop, and what to give: the keys of `[generate]` of these names.

    Raises:
        RequestError: A value that its key can't take, or two that contradict each other.
    """

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    stop_token: tuple[int | str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    prompt_lookup: bool = False
    thinking: str | None = None
    thinking_budget: int | None = None
    tools: str | None = None
    json_schema: str | None = None
    regex: str | None = None
    choice: tuple[str, ...] = ()
    calculator: bool = False

    @property
    def form(self) -> str | None:
        """The grammar that the answer is held to, if it is to any."""
        found = grammar_of(self.json_schema, self.regex, self.choice)
        return None if found is None else found[1]

    def __post_init__(self) -> None:
        _check(self)
        _check_form(self)
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                "min_tokens",
                f"{self.min_tokens} is more than max_tokens, which is {self.max_tokens}",
                "lower the one or raise the other",
            )

    @classmethod
    def from_table(cls, table: GenerateTable) -> GenerationOptions:
        """The options that the resolved configuration asks for; a seed is drawn if it has none."""
        given: dict[str, Any] = {name: getattr(table, name) for name in table.checks}
        given["seed"] = random_seed() if table.seed is None else table.seed
        of_sampling = {f.name: given[f.name] for f in fields(SamplingOptions)}
        own = {f.name: given[f.name] for f in fields(cls) if f.name != "sampling"}
        return cls(sampling=SamplingOptions(**of_sampling), **own)


@dataclass(frozen=True)
class Request:
    """What is asked: a conversation, or (`messages` empty) plain text to go on with."""

    id: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    options: GenerationOptions = field(default_factory=GenerationOptions)

    def __post_init__(self) -> None:
        check_text("--prompt", self.text)
        asked = [m.content for m in self.messages if m.role in ("user", "tool")]
        said = "".join(asked) + self.text
        if not said.strip():
            raise RequestError("--prompt", "is empty", "say something")


@dataclass(frozen=True)
class TokenRequest:
    """A request as the engine takes it: token ids in, token ids out, one answer.

    Attributes:
        id: Names it in events; no two under way share one.
        prompt: Token ids that the model reads.
        options: How to answer; `stop` strings are matched on text.
        stop_ids: Tokens that end the answer and are not part of its text.
        exempt_ids: Tokens that XTC never leaves out.
        choice: Which of several answers to one prompt this is.
        sections: What is told apart in the answer; None if it is all one text.
    """

    id: str
    prompt: tuple[int, ...]
    options: GenerationOptions
    stop_ids: frozenset[int] = frozenset()
    exempt_ids: frozenset[int] = frozenset()
    choice: int = 0
    sections: Sections | None = None

    @property
    def length(self) -> int:
        """Most tokens of prompt and answer together."""
        return len(self.prompt) + self.options.max_tokens

    def answers(self) -> tuple[TokenRequest, ...]:
        """One request for each of `options.n` answers, told apart by id, seed and choice.

        The first is what the request with n = 1 would be.
        """
        options = replace(self.options, n=1)
        sampling = options.sampling
        return tuple(
            replace(
                self,
                id=self.id if choice == 0 else f"{self.id}.{choice}",
                options=replace(
                    options, sampling=replace(sampling, seed=seed_of_answer(sampling.seed, choice))
                ),
                choice=choice,
            )
            for choice in range(self.options.n)
        )

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestError("--prompt", "gives no tokens")


def _check_form(options: GenerationOptions) -> None:
    """Refuse what would end an answer that is not of its form yet, or go on after it is."""
    found = grammar_of(options.json_schema, options.regex, options.choice)
    if found is None:
        return
    for name in ("stop", "stop_token", "min_tokens", "ignore_eos", "tools", "calculator"):
        if getattr(options, name):
            mend = "the form alone says where the answer ends" if name != "tools" else ""
            what = f"does not go with {found[0]}"
            raise RequestError(name, what, f"{mend}; leave one out" if mend else "leave one out")


def _check(options: SamplingOptions | GenerationOptions) -> None:
    """Check every field by its key, and keep it in the key's one form."""
    for name in (f.name for f in fields(options)):
        key = KEYS.get(f"generate.{name}")
        value = getattr(options, name)
        if key is None or (value is None and key.default is None and name != "seed"):
            continue
        try:
            object.__setattr__(options, name, key.check(value))
        except InvalidValue as error:
            raise RequestError(name, error.what, error.mend) from error
