"""From a request to the token ids that the engine reads: template, tokenizer, budget.

Owns that order, the ids that end an answer, and the refusal of what does not fit. Knows
nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from configs.checks import shown
from configs.errors import RequestError
from inference.reading import sections_of
from inference.request import Request, TokenRequest
from inference.sections import Sections
from inference.template import ChatTemplate
from inference.thinking import switch_variables
from inference.tokenizer import Tokenizer
from inference.tools import check_tools

_NEWLINES = ("\n", "Ċ", "<0x0A>")  # as plain, byte-level and byte-fallback vocabularies write it


def tokenize(
    request: Request,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    context: int | None,
    *,
    vocabulary: int | None = None,
    may_lower_max_tokens: bool = False,
) -> TokenRequest:
    """The request in token ids.

    Args:
        request: Messages, which need a template, or text.
        tokenizer: The model's.
        template: The model's.
        context: Most tokens of prompt and answer together; None for no limit.
        vocabulary: How many token ids the model has; None where it is not known.
        may_lower_max_tokens: Whether `max_tokens` is only a default, so that an answer may
            end sooner where the context does.

    Raises:
        RequestError: It does not fit the context (a prompt is never cut), or an option
            names a token that there is not.
        TemplateError: The template refuses the messages.
        TokenizerError: The tokenizer fails on this text.
    """
    biased = [token for token, _ in request.options.sampling.logit_bias]
    _check_ids("logit_bias", biased, vocabulary)
    own = {token for token in tokenizer.eos_ids if vocabulary is None or token < vocabulary}
    stop_ids = frozenset(_stop_tokens(request.options.stop_token, tokenizer, vocabulary))
    if not request.options.ignore_eos:
        stop_ids |= own
    if request.options.calculator:
        from inference.calculator import find_marks

        find_marks(tokenizer)
    said = sum(len(message.content) for message in request.messages) + len(request.text)
    tokenizer.check_length(said, context)
    options = request.options
    ids, sections = _encode(request, tokenizer, template)
    if may_lower_max_tokens and context is not None and len(ids) < context:
        options = replace(options, max_tokens=min(options.max_tokens, context - len(ids)))
    _check_budget(len(ids), options.max_tokens, context)
    exempt: frozenset[int] = frozenset()
    if options.sampling.xtc_probability > 0:
        newlines = {found for text in _NEWLINES if (found := tokenizer.id_of(text)) is not None}
        exempt = stop_ids | own | newlines
    return TokenRequest(request.id, tuple(ids), options, stop_ids, exempt, sections=sections)


def _encode(
    request: Request, tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[list[int], Sections | None]:
    options = request.options
    if not request.messages:
        if options.tools is not None:
            raise RequestError("tools", "need a chat template", "leave them out")
        return tokenizer.encode_text(request.text), None
    if template is None:
        raise RequestError(
            "--prompt",
            "this model has no chat template, so messages can't be put to it",
            "use --raw, or set tokenizer.chat_template",
        )
    control = tokenizer.control_tokens(template.source)
    segments = template.render(
        request.messages,
        control=control,
        special=tokenizer.special(),
        variables={
            **tokenizer.special_tokens,
            **switch_variables(options.thinking, template.variables),
        },
        tools=None if options.tools is None else check_tools(options.tools),
    )
    sections = sections_of(options, tokenizer, template, segments)
    return tokenizer.encode_segments(segments, control), sections


def _stop_tokens(
    tokens: Iterable[int | str], tokenizer: Tokenizer, vocabulary: int | None
) -> list[int]:
    found = []
    for token in tokens:
        id_ = token if isinstance(token, int) else tokenizer.id_of(token)
        if id_ is None:
            raise RequestError(
                "stop_token",
                f"{shown(token)} is no token of this model",
                "give the text or id of one; --stop ends an answer at any text",
            )
        found.append(id_)
    _check_ids("stop_token", found, vocabulary)
    return found


def _check_ids(option: str, ids: list[int], vocabulary: int | None) -> None:
    highest = max(ids, default=-1)
    if vocabulary is not None and highest >= vocabulary:
        what = f"{highest} is no token of this model, which has {vocabulary}"
        raise RequestError(option, what, "give the id of one")


def _check_budget(prompt: int, max_tokens: int, context: int | None) -> None:
    if context is None or prompt + max_tokens <= context:
        return
    left = context - prompt
    what = f"{prompt} prompt tokens and max_tokens {max_tokens} are beyond the context of {context}"
    if left > 0:
        raise RequestError("--prompt", what, f"shorten it, or lower --max-tokens to {left}")
    raise RequestError("--prompt", what, "shorten it")
