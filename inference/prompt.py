"""From a request to the token ids that the engine reads: template, tokenizer, budget.

Owns that order and the refusal of what does not fit. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import replace

from configs.errors import RequestError
from inference.request import Request, TokenRequest
from inference.template import ChatTemplate
from inference.tokenizer import Tokenizer


def tokenize(
    request: Request,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    context: int | None,
    *,
    may_lower_max_tokens: bool = False,
) -> TokenRequest:
    """The request in token ids.

    Args:
        request: Messages, which need a template, or text.
        tokenizer: The model's.
        template: The model's.
        context: Most tokens of prompt and answer together; None for no limit.
        may_lower_max_tokens: Whether `max_tokens` is only a default, so that an answer may
            end sooner where the context does.

    Raises:
        RequestError: It does not fit the context; a prompt is never cut.
        TemplateError: The template refuses the messages.
        TokenizerError: The tokenizer fails on this text.
    """
    said = sum(len(message.content) for message in request.messages) + len(request.text)
    tokenizer.check_length(said, context)
    if request.messages:
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
            variables=tokenizer.special_tokens,
        )
        ids = tokenizer.encode_segments(segments, control)
    else:
        ids = tokenizer.encode_text(request.text)
    options = request.options
    if may_lower_max_tokens and context is not None and len(ids) < context:
        options = replace(options, max_tokens=min(options.max_tokens, context - len(ids)))
    _check_budget(len(ids), options.max_tokens, context)
    return TokenRequest(request.id, tuple(ids), options, tokenizer.eos_ids)


def _check_budget(prompt: int, max_tokens: int, context: int | None) -> None:
    if context is None or prompt + max_tokens <= context:
        return
    left = context - prompt
    what = f"{prompt} prompt tokens and max_tokens {max_tokens} are beyond the context of {context}"
    if left > 0:
        raise RequestError("--prompt", what, f"shorten it, or lower --max-tokens to {left}")
    raise RequestError("--prompt", what, "shorten it")
