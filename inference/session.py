"""A model made ready to answer: folder, tokenizer, template, weights, engine.

Owns the order in which they are opened, so that whatever can be refused is refused
before the weights are read. Knows nothing of flags or output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint.folder import GENERATION_CONFIG, file_in
from checkpoint.json_file import read_json_object
from configs.errors import FerryError, ModelConfigError, RequestError, UsageError
from configs.resolve import DEFAULT, Layers, Resolved

if TYPE_CHECKING:
    from inference.cache import KvForm
    from inference.engine import Engine
    from inference.load import LoadedModel, ModelFolder
    from inference.request import GenerationOptions, Request, TokenRequest
    from inference.score import Score
    from inference.statistics import Run
    from inference.template import ChatTemplate
    from inference.tokenizer import Tokenizer


def with_recommendations(layers: Layers, folder: Path) -> Resolved:
    """The settings, with what the folder's generation_config.json recommends among them."""
    path = file_in(folder, GENERATION_CONFIG)
    if not path.is_file():
        return layers.resolve()
    recommended: dict[str, Any] = read_json_object(path, ModelConfigError)
    return layers.with_generation_config(recommended, path).resolve()


@dataclass(frozen=True)
class Session:
    """A model folder that has been checked, and the settings to run it with."""

    folder: ModelFolder
    settings: Resolved
    tokenizer: Tokenizer | None
    template: ChatTemplate | None

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and answer together."""
        return self.settings.memory.context or self.folder.context

    def request(self, id: str, text: str, options: GenerationOptions, *, raw: bool) -> Request:
        """A prompt as a request: put to the chat template with the system message, if any.

        Args:
            id: Names it in events.
            text: The prompt.
            options: How to answer.
            raw: Go on with the text itself.
        """
        from inference.request import Message, Request

        system = self.settings.generate.system
        if raw or (self.template is None and system is None):
            if not raw:
                _refuse_of_template(options)
            return Request(id, text=text, options=options)
        said = () if system is None else (Message("system", system),)
        return Request(id, messages=(*said, Message("user", text)), options=options)

    def tokenize(self, request: Request, *, own_max_tokens: bool = False) -> TokenRequest:
        """A request in token ids, if it fits.

        Args:
            request: What is asked.
            own_max_tokens: Whether `max_tokens` is the request's own, and not the settings'.
        """
        from inference.prompt import tokenize

        if self.tokenizer is None:
            raise RequestError("--prompt", f"{self.folder.path} has no tokenizer", "copy it there")
        # A user's own max_tokens is a promise to keep; the model's and ours are not.
        asked = self.settings.origin("generate.max_tokens")
        return tokenize(
            request,
            self.tokenizer,
            self.template,
            self.context,
            vocabulary=self.folder.vocabulary,
            may_lower_max_tokens=not own_max_tokens and asked in (DEFAULT, GENERATION_CONFIG),
        )

    def length_that_stays(self, request: Request) -> int | None:
        """How many tokens of a prompt one that says more would begin with; None if it can't be.

        Args:
            request: Whose last text is what another may go on with.
        """
        more = f"{request.text}\n\nx" if request.text else ""
        said = request.messages
        if said:
            said = (*said[:-1], replace(said[-1], content=f"{said[-1].content}\n\nx"))
        options = replace(request.options, max_tokens=1, min_tokens=0)
        from inference.cache import common_length

        try:
            first = self.tokenize(request).prompt
            other = self.tokenize(replace(request, messages=said, text=more, options=options))
        except FerryError:
            return None
        shared = common_length(first, other.prompt)
        return shared if 0 < shared < len(first) - 1 else None

    def check_ids(self, ids: list[int]) -> None:
        """Refuse token ids that the model can't read.

        Raises:
            RequestError: Beyond the vocabulary.
        """
        rows = self.folder.vocabulary
        for position, found in enumerate(ids, start=1):
            if not 0 <= found < rows:
                raise RequestError(
                    "--ids-file",
                    f"token {position} is {found}, and the vocabulary has {rows} ids",
                    "score text that this model's tokenizer encoded",
                )

    def window(self, window: int | None, stride: int | None, length: int) -> int | None:
        """How many tokens of a text to score together; None for all of them.

        Args:
            window: What the user asked for; the context if None.
            stride: Tokens between two windows; half a window if None.
            length: Of the text.

        Raises:
            UsageError: A window beyond the context, or a stride that is not within it.
        """
        chosen = window or self.context
        if window is not None and self.context is not None and window > self.context:
            what = f"{window} tokens are beyond the context of {self.context}"
            raise UsageError("--window", what, "give a smaller one")
        if stride is not None and (chosen is None or stride >= chosen):
            raise UsageError("--stride", f"{stride} is not within a window of {chosen}", "lower it")
        return None if chosen is None or length <= chosen else chosen

    def load(self, device: str, dtype: str, length: int) -> LoadedModel:
        """Read the weights.

        Args:
            device: `auto`, `gpu` or `cpu`.
            dtype: `auto`, or what to compute in.
            length: Most tokens of the texts to come, for RoPE that depends on it.
        """
        from checkpoint.architecture.rotations import tune_rotations
        from inference.cache import check_kv_bits
        from inference.device import allocating, place
        from inference.load import load

        memory = self.settings.memory
        needed = self.folder.weight_bytes
        if memory.limit is not None and memory.limit < needed:
            raise UsageError(
                self.settings.origin("memory.limit"),
                f"{memory.limit:,} bytes can't hold the weights, which are {needed:,}",
                "raise memory.limit, or convert the model to fewer bits",
            )
        with allocating():
            loaded = load(self.folder, place(device, dtype, memory.limit))
            tune_rotations(loaded.model, self.folder.config, length)
            if memory.kv_bits is not None:
                kept = check_kv_bits(loaded.model, memory.kv_bits)
                loaded = replace(loaded, kept_cache=kept)
        return loaded

    def token_fields(self) -> Callable[[int], dict[str, Any]] | None:
        """What JSON says of a token by itself."""
        from inference.token_text import TokenTexts

        return None if self.tokenizer is None else TokenTexts(self.tokenizer).fields

    def engine(self, loaded: LoadedModel, max_rows: int = 1) -> Engine:
        """The engine for requests of this session, so many of them at once."""
        from inference.device import kv_budget
        from inference.engine import Engine
        from inference.reading import Readers

        tokenizer = self.tokenizer
        if tokenizer is None:
            raise RequestError("--prompt", f"{self.folder.path} has no tokenizer", "copy it there")
        control = tokenizer.control_tokens("" if self.template is None else self.template.source)
        # Without a limit of the user's own, one answer may go as far as the device lets it.
        limit, budget = self.settings.memory.limit, None
        if limit is not None:
            draft = 0 if loaded.draft is None else loaded.draft.weight_bytes
            budget = kv_budget(loaded.placement, loaded.weight_bytes + draft, limit)
        return Engine(
            loaded.model,
            Readers(tokenizer, self.folder.vocabulary, control).make,
            kv_bits=self.settings.memory.kv_bits,
            kv_start=self.settings.memory.kv_start,
            attention_heads=self._score_heads(loaded),
            draft=loaded.draft,
            max_rows=max_rows,
            budget_bytes=budget,
        )

    @property
    def kv_form(self) -> KvForm:
        """How its KV caches are kept."""
        from inference.cache import KvForm

        return KvForm(self.settings.memory.kv_bits, self.settings.memory.kv_start)

    def _score_heads(self, loaded: LoadedModel) -> int | None:
        """Heads whose attention scores are all in memory at once."""
        # Attention over a quantized cache is fused nowhere.
        quantized = self.settings.memory.kv_bits is not None
        return self.folder.attention_heads if quantized else loaded.score_heads

    def score(
        self,
        loaded: LoadedModel,
        ids: list[int],
        window: int | None = None,
        stride: int | None = None,
    ) -> Score:
        """Log-probabilities of token ids, by windows if they are more than one."""
        from inference.score import score

        return score(
            loaded.model,
            ids,
            vocabulary=self.folder.vocabulary,
            attention_heads=self._score_heads(loaded),
            form=self.kv_form,
            window=window,
            stride=stride,
        )


def open_session(folder: Path, settings: Resolved, *, need_tokenizer: bool = True) -> Session:
    """Check a folder's files.

    Args:
        folder: The model folder.
        settings: How to run it.
        need_tokenizer: Whether a folder without tokenizer files is refused.

    Raises:
        SourceError: One of them is not what it should be.
        UsageError: The context is beyond what the model can read.
    """
    from inference.load import open_folder
    from inference.template import find_template
    from inference.tokenizer import has_tokenizer, load_tokenizer

    opened = open_folder(folder, settings.memory.load_bits, settings.model.adapter)
    context, positions = settings.memory.context, opened.positions
    if context is not None and positions is not None and context > positions:
        raise UsageError(
            settings.origin("memory.context"),
            f"{context} tokens are beyond the {positions} positions that the model has learned",
            "lower it",
        )
    if not need_tokenizer and not has_tokenizer(folder):
        return Session(opened, settings, None, None)
    tokenizer = load_tokenizer(folder, opened.config, settings.tokenizer.eos_tokens)
    tokenizer.check_rows(opened.vocabulary)
    template = find_template(folder, settings.tokenizer.chat_template)
    return Session(opened, settings, tokenizer, template)


def _refuse_of_template(options: GenerationOptions) -> None:
    asked = {
        "thinking": options.thinking == "off",
        "thinking_budget": options.thinking_budget is not None,
    }
    for name, given in asked.items():
        if given:
            what = "this model has no chat template to ask for it"
            raise RequestError(name, what, "leave it out")


def describe_run(name: str, loaded: LoadedModel) -> Run:
    """What the outputs say of this run."""
    from inference.statistics import Run

    return Run(
        model=name,
        device=loaded.placement.device,
        dtype=loaded.dtype,
        load_seconds=loaded.seconds,
        weight_bytes=loaded.folder.catalog.total_bytes,
        adapter=None if loaded.folder.adapter is None else str(loaded.folder.adapter.path),
    )
