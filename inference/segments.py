"""A rendered chat in two kinds of text, and its token ids.

Owns the rule that the text of a control token, such as `<|im_end|>`, is a control
token only where the template wrote it: in what a user said it is text like any
other. Knows nothing of templates or files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# Stands where a control token was; a private-use character that no text means anything by.
_MARK = "\U000f0001"


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered chat; `literal` ones spell a control token but are plain text."""

    text: str
    literal: bool = False


class SegmentEncoder:
    """Encodes segments with a tokenizers backend.

    Where no segment is literal the ids are those of the whole text, encoded at once.
    Otherwise control tokens are cut out by hand, and what lies between them is
    encoded by a copy of the backend that does not know them.

    Args:
        backend: The tokenizer.
        control: The control tokens, by their text.
    """

    def __init__(self, backend: Backend, control: dict[str, int]) -> None:
        self._backend = backend
        self._control = control
        self._added = {
            token.content: token for token in backend.get_added_tokens_decoder().values()
        }
        self._plain: Backend | None = None

    def encode(self, segments: Sequence[Segment]) -> list[int]:
        """The token ids of the segments in one piece.

        Raises:
            TokenizerError: The tokenizer makes a control token even of plain text.
        """
        if not any(segment.literal for segment in segments):
            text = "".join(segment.text for segment in segments)
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        ids = self._encode_split(segments, split_literals=False)
        if ids is None:
            # Unigram models may have the token's text as an ordinary piece: cut it in two.
            ids = self._encode_split(segments, split_literals=True)
        if ids is None:
            raise TokenizerError(
                "--prompt", "the tokenizer makes a control token of plain text", "leave it out"
            )
        return ids

    def _encode_split(self, segments: Sequence[Segment], split_literals: bool) -> list[int] | None:
        """Ids with control tokens only where they belong; None if one turned up elsewhere."""
        text, marks = self._marked(segments, split_literals)
        plain = self._plain_backend()
        mark = plain.token_to_id(_MARK)
        forbidden = set(self._control.values())
        left = iter(marks)
        ids: list[int] = []
        encoding = plain.encode(text, add_special_tokens=False)
        for found, token in zip(encoding.ids, encoding.tokens, strict=True):
            if found == mark:
                control = next(left)
                if control is not None:
                    ids.append(control)
                continue
            known = self._backend.token_to_id(token)  # added tokens have other ids in the copy
            if known is None or known in forbidden:
                return None
            ids.append(known)
        return ids

    def _marked(
        self, segments: Sequence[Segment], split_literals: bool
    ) -> tuple[str, list[int | None]]:
        """The text with a mark for each control token, and each mark's id (None: a mere cut)."""
        parts: list[str] = []
        marks: list[int | None] = []
        pattern = self._control_pattern()
        for segment in segments:
            text = segment.text.replace(_MARK, "\ufffd")
            if segment.literal:
                half = len(text) // 2 if split_literals else 0
                parts += [text[:half], _MARK, text[half:]] if half else [text]
                marks += [None] if half else []
                continue
            at = 0
            for match in pattern.finditer(text):
                parts += [text[at : match.start()], _MARK]
                marks.append(self._control[match.group().strip()])
                at = match.end()
            parts.append(text[at:])
        return "".join(parts), marks

    def _control_pattern(self) -> re.Pattern[str]:
        """Matches the longest control token, with the white space that belongs to it."""
        choices = []
        for content in sorted(self._control, key=len, reverse=True):
            token = self._added[content]
            left, right = (r"\s*" if strips else "" for strips in (token.lstrip, token.rstrip))
            choices.append(left + re.escape(content) + right)
        return re.compile("|".join(choices))

    def _plain_backend(self) -> Backend:
        if self._plain is None:
            from tokenizers import AddedToken, Tokenizer

            state = json.loads(self._backend.to_str())
            state["added_tokens"] = []
            state["post_processor"] = None
            self._plain = Tokenizer.from_str(json.dumps(state))
            self._plain.add_tokens(
                [token for content, token in self._added.items() if content not in self._control]
            )
            self._plain.add_special_tokens([AddedToken(_MARK, normalized=False)])
        return self._plain
