"""Messages to the text that a model expects: the chat template.

Owns where a folder keeps its template, and the run of it. Knows nothing of token
ids: it is told which texts are control tokens, and says where a user spelt one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from traceback import extract_tb
from typing import Any

from checkpoint import disk
from checkpoint.folder import file_in
from checkpoint.json_file import read_json_object
from configs.errors import TemplateError
from inference.request import Message, quoted
from inference.segments import Segment

_MAX_SOURCE = 1_000_000
_FRAME = "<template>"  # what jinja calls the compiled template's file


class ChatTemplate:
    """One model's chat template.

    Args:
        source: The template's text.
        where: The file it comes from, for errors.

    Raises:
        TemplateError: It can't be parsed.
    """

    def __init__(self, source: str, where: str | Path) -> None:
        from jinja2.exceptions import TemplateSyntaxError

        from inference.template_sandbox import Sandbox

        self.source = source
        self.where = where
        if len(source) > _MAX_SOURCE:
            raise TemplateError(where, f"has {len(source)} characters", "no template is that long")
        self._sandbox = Sandbox()
        try:
            self._compiled = self._sandbox.from_string(source)
        except TemplateSyntaxError as error:
            raise TemplateError(
                f"{where}:{error.lineno}", f"{error.message}", "correct the template, or use --raw"
            ) from error
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            raise TemplateError(where, f"can't be compiled ({error})", "use --raw") from error

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names of what the template reads of what it is given."""
        from jinja2 import meta

        return frozenset(meta.find_undeclared_variables(self._sandbox.parse(self.source)))

    def render(
        self,
        messages: Sequence[Message],
        *,
        control: Sequence[str] = (),
        special: Sequence[str] = (),
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Segment]:
        """The conversation as text, ending where the assistant is to speak.

        Args:
            messages: The conversation.
            control: Texts that are plain text when anybody but the assistant says them.
            special: Those of them that are plain text in the assistant's words too; its
                others, such as `<think>`, are its own.
            variables: What else the template may use, such as `bos_token`.
            tools: What the model may call, in OpenAI's form.

        Raises:
            TemplateError: The template refuses the conversation, does what it may not,
                or takes too much time or space.
        """
        quoter = _Quoter()

        def said(message: Message) -> dict[str, Any]:
            theirs = special if message.role == "assistant" else control
            return message.fields(lambda text: quoter.quote(text, theirs))

        given: dict[str, Any] = {
            "messages": [said(message) for message in messages],
            "tools": None if tools is None else quoter.all(list(tools), control),
            "documents": None,
            "add_generation_prompt": True,
        }
        text = self._run({**(variables or {}), **given})
        segments = quoter.unquote(text)
        if segments is None:
            raise TemplateError(
                self.where, "changes a control token that the prompt spells", "use --raw"
            )
        return segments

    def _run(self, variables: dict[str, Any]) -> str:
        from jinja2.exceptions import SecurityError
        from jinja2.exceptions import TemplateError as JinjaError

        from inference.template_caps import CapError, Caps
        from inference.template_sandbox import RaisedByTemplateError

        self._sandbox.caps = Caps()
        try:
            return self._compiled.render(variables)
        except RaisedByTemplateError as error:
            raise TemplateError(self.where, str(error), "") from error
        except CapError as error:
            mend = "the template is broken or hostile; --raw does without it"
            raise TemplateError(self._place(error), str(error), mend) from error
        except SecurityError as error:
            mend = "the template is hostile; --raw does without it"
            raise TemplateError(self._place(error), str(error), mend) from error
        except (JinjaError, ArithmeticError, AttributeError, LookupError) as error:
            raise TemplateError(self._place(error), str(error), "use --raw") from error
        except (TypeError, ValueError, RecursionError, MemoryError) as error:
            raise TemplateError(self._place(error), str(error), "use --raw") from error

    def _place(self, error: BaseException) -> str:
        """The file, and the template's line that failed."""
        lines = [
            frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == _FRAME
        ]
        return f"{self.where}:{lines[-1]}" if lines else str(self.where)


def find_template(folder: Path, given: Path | None = None) -> ChatTemplate | None:
    """The template to use for a folder: the given file, or the folder's own; None without one.

    Raises:
        TemplateError: It can't be read or parsed.
    """
    if given is not None:
        return ChatTemplate(_read(given), given)
    path = file_in(folder, "chat_template.jinja")
    if path.is_file():
        return ChatTemplate(_read(path), path)
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = file_in(folder, name)
        if not path.is_file():
            continue
        source = _named(read_json_object(path, TemplateError).get("chat_template"), path)
        if source is not None:
            return ChatTemplate(source, path)
    return None


def _named(value: object, path: Path) -> str | None:
    """The template itself, or of a list of named ones the one called "default"."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
        if value is None:
            raise TemplateError(
                path, "has chat templates but none named default", "set tokenizer.chat_template"
            )
    if value is None or isinstance(value, str):
        return value
    raise TemplateError(path, "chat_template is not text", "use --raw")


def _read(path: Path) -> str:
    try:
        return bytes(disk.read_whole(path, 4 * _MAX_SOURCE)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(
            path, f"is not UTF-8 (byte {error.start})", "save it as UTF-8"
        ) from error


class _Quoter:
    """Stands placeholders in for control tokens in what was said, so that they can be told
    from those that the template writes."""

    def __init__(self) -> None:
        # Nobody can guess the digits, and templates do not change digits.
        self._mark = f"\U000f0000{secrets.randbelow(10**12):012d}"
        self._texts: list[str] = []

    def quote(self, text: str, control: Sequence[str]) -> str:
        longest_first = sorted(control, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        return re.sub(pattern, self._place, text) if pattern else text

    def all(self, value: Any, control: Sequence[str]) -> Any:
        return quoted(value, lambda text: self.quote(text, control))

    def _place(self, match: re.Match[str]) -> str:
        self._texts.append(match.group())
        return f"{self._mark}{len(self._texts) - 1:06d}"

    def unquote(self, text: str) -> list[Segment] | None:
        """The text cut at the placeholders; None if one of them was broken."""
        segments: list[Segment] = []
        for index, part in enumerate(re.split(f"{self._mark}(\\d{{6}})", text)):
            if index % 2:
                segments.append(Segment(self._texts[int(part)], literal=True))
            elif self._mark[:7] in part:
                return None
            elif part:
                segments.append(Segment(part))
        return segments
