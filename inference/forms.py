"""The form that an answer is asked to have: a JSON schema, a regular expression, a choice.

Owns how a form is written as llguidance's grammar, and what is wrong with one. Knows
nothing of tokens or models.
"""

from __future__ import annotations

import json
from functools import lru_cache

from configs.errors import RequestError

# Between the parts of JSON: one space, or a line break with its indentation. Without an end
# to it a small model writes spaces for ever.
_SPACE = r" |\n[ \t]{0,40}"


@lru_cache(256)
def grammar_of(
    json_schema: str | None, regex: str | None, choice: tuple[str, ...]
) -> tuple[str, str] | None:
    """The option that gives a form, and the form as llguidance reads it; None without any.

    Args:
        json_schema: As JSON.
        regex: What the whole answer matches.
        choice: The texts that the answer may be.

    Raises:
        RequestError: There is more than one, or llguidance can't read it, with its reason.
    """
    given = {"json_schema": json_schema, "regex": regex, "choice": choice}
    asked = [name for name, value in given.items() if value]
    if not asked:
        return None
    if len(asked) > 1:
        raise RequestError(asked[1], f"does not go with {asked[0]}", "give one of them")
    from llguidance import LLMatcher

    name = asked[0]
    try:
        if json_schema:
            grammar = LLMatcher.grammar_from_json_schema(
                json_schema, {"whitespace_pattern": _SPACE}
            )
        elif regex:
            grammar = LLMatcher.grammar_from_regex(regex)
        else:
            texts = (json.dumps(text, ensure_ascii=False) for text in choice)
            grammar = LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}")
    except ValueError as error:
        raise RequestError(name, reason(str(error))) from error
    wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong:
        raise RequestError(name, reason(messages[0]), "llguidance can't hold an answer to it")
    return name, grammar


def reason(text: str) -> str:
    """The line of a message that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (named or lines or ["it can't be read"])[0]
