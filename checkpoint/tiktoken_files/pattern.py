r"""A regular expression of Rust's kind as the `tokenizers` library's engine must be given it.

tiktoken cuts text by Rust's engine, `tokenizers` by Oniguruma in Ruby's syntax. Most of
what such patterns are made of means the same to both; these do not, and are rewritten:

    \p{N}{1,3}+   possessive in Rust, a repeat of a repeat in Ruby   ->  (?>\p{N}{1,3})
    ^  $          ends of the text in Rust, of a line in Ruby        ->  \A  \z
    \w            has other members                                  ->  those it has in Rust
    \pL           not known to Ruby's syntax                         ->  \p{L}
    \x{e9}        a byte in Ruby's syntax                            ->  the character

Owns the walk through a pattern. What it does not know to mean the same is refused.
"""

from __future__ import annotations

import re
from pathlib import Path

from checkpoint.json_file import quoted
from configs.errors import TokenizerError

_LONGEST = 20_000
_GROUPS = ("(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>")
_BRACES = re.compile(r"\{(\d{1,4})(,(\d{0,4}))?\}")
_PROPERTY = re.compile(r"\\([pP])(?:\{(\^?)([A-Za-z_]+)\}|([A-Z]))")
_CHARACTER = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|[xu]\{([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4}))")
# General categories and scripts, whose names both know.
_PROPERTIES = re.compile(
    r"L[ulmto]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?|C[cfo]?|Alphabetic|White_Space"
    r"|Han|Hangul|Hiragana|Katakana|Latin|Greek|Cyrillic|Arabic|Hebrew|Thai|Devanagari|Common"
)
# What letters beyond ASCII are in the other case, each engine has its own tables for.
_FOLDED = re.compile(r"[^\x00-\x7f]")
_SAME_ESCAPES = "sSdDrntfv"
_WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}" + "\u200c\u200d"


def for_tokenizers(pattern: str, where: Path) -> str:
    """The pattern that cuts text for Oniguruma where this one does for Rust.

    Raises:
        TokenizerError: It holds something that is not known to mean the same.
    """
    return _Walk(pattern, where).whole()


class _Walk:
    """One pass through a pattern.

    Attributes:
        made: What is written so far.
        atom: Where the last atom begins in `made`; None where a quantifier has nothing to
            repeat.
    """

    def __init__(self, pattern: str, where: Path) -> None:
        self._pattern, self._where = pattern, where
        self._at = 0
        self.made: list[str] = []
        self.atom: int | None = None

    def whole(self) -> str:
        if not self._pattern or len(self._pattern) > _LONGEST:
            raise self._refused("is empty or too long")
        self._alternatives(top=True)
        return "".join(self.made)

    def _alternatives(self, top: bool) -> None:
        """Up to the end, or to the parenthesis that closes a group."""
        while self._at < len(self._pattern):
            char = self._pattern[self._at]
            if char == ")":
                if top:
                    raise self._refused("closes a group that is not open")
                return
            if char == "|":
                self._take(1)
                self.atom = None
            elif char in "*+?{":
                self._quantifier()
            else:
                self.atom = len(self.made)
                self._atom(char)
        if not top:
            raise self._refused("leaves a group open")

    def _atom(self, char: str) -> None:
        if char == "(":
            self._group()
        elif char == "[":
            self._class()
        elif char == "\\":
            self.made.append(self._escape(in_class=False))
        elif char in "^$":
            self._at += 1
            self.made.append(r"\A" if char == "^" else r"\z")
        elif char in "}]":
            raise self._refused(f"has a bare {char}")
        else:
            self._take(1)

    def _group(self) -> None:
        begin, at = self.atom, self._at
        opening = next((g for g in _GROUPS if self._pattern.startswith(g, self._at)), None)
        if opening is None:
            if self._pattern.startswith("(?", self._at):
                raise self._refused(f"has a group {self._pattern[self._at : self._at + 4]!r}")
            self._at += 1
            self.made.append("(?:")
        else:
            self._take(len(opening))
        self.atom = None
        self._alternatives(top=False)
        self._take(1)
        if opening == "(?i:" and (found := _FOLDED.search(self._pattern, at, self._at)):
            raise self._refused(f"has {found[0]!r} in either case")
        self.atom = begin

    def _quantifier(self) -> None:
        if self.atom is None:
            raise self._refused("repeats nothing")
        braces = _BRACES.match(self._pattern, self._at)
        if braces is None and self._pattern[self._at] == "{":
            raise self._refused("has a bare {")
        text = braces[0] if braces else self._pattern[self._at]
        self._at += len(text)
        mode = self._pattern[self._at : self._at + 1]
        if braces and mode == "?":
            if braces[2] is None:
                raise self._refused(f"has {text}?")
        elif braces and mode == "+":
            self._at += 1
            self.made[self.atom :] = ["(?>", *self.made[self.atom :], text, ")"]
            self._once()
            return
        if mode in ("?", "+"):
            self._at += 1
            text += mode
        self.made.append(text)
        self._once()

    def _once(self) -> None:
        """A quantifier of a quantifier is no possessive in one engine and one in the other."""
        if self._pattern[self._at : self._at + 1] in ("*", "+", "?", "{"):
            raise self._refused("repeats a repeat")
        self.atom = None

    def _class(self) -> None:
        """A set of characters, nested ones and intersections included."""
        self._take(1)
        if self._pattern[self._at : self._at + 1] == "^":
            self._take(1)
        if self._pattern[self._at : self._at + 1] in ("]", "-"):
            raise self._refused("has a set that begins with ] or -")
        while self._at < len(self._pattern):
            char = self._pattern[self._at]
            if char == "]":
                self._take(1)
                return
            if char == "[":
                if self._pattern.startswith("[:", self._at):
                    raise self._refused("has a set named [: :]")
                self._class()
            elif char == "\\":
                self.made.append(self._escape(in_class=True))
            elif self._pattern[self._at : self._at + 2] in ("--", "~~"):
                raise self._refused("takes one set from another")
            else:
                self._take(1)
        raise self._refused("leaves a set open")

    def _escape(self, *, in_class: bool) -> str:
        """What stands for the escape at this place."""
        pattern, at = self._pattern, self._at
        if found := _PROPERTY.match(pattern, at):
            name = found[3] or found[4]
            if found[2] or not _PROPERTIES.fullmatch(name):
                raise self._refused(f"has {found[0]}")
            self._at = found.end()
            return rf"\{found[1]}{{{name}}}"
        if found := _CHARACTER.match(pattern, at):
            number = int(found[1] or found[2] or found[3], 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                raise self._refused(f"has {found[0]}")
            self._at = found.end()
            char = chr(number)
            return f"\\{char}" if number < 128 and not char.isalnum() else char
        char = pattern[at + 1 : at + 2]
        self._at += 2
        if char == "w":
            return _WORD if in_class else f"[{_WORD}]"
        if char == "W" and not in_class:
            return f"[^{_WORD}]"
        if char == "A" or char == "z":
            if not in_class:
                return f"\\{char}"
        elif char and (char in _SAME_ESCAPES or (char.isascii() and not char.isalnum())):
            return f"\\{char}"
        raise self._refused(f"has \\{char}")

    def _take(self, count: int) -> None:
        self.made.append(self._pattern[self._at : self._at + count])
        self._at += count

    def _refused(self, what: str) -> TokenizerError:
        return TokenizerError(
            self._where,
            f"cuts text by a pattern that {what}, which may mean something else in a "
            f"tokenizer.json ({quoted(self._pattern[:120])})",
            "save the tokenizer as tokenizer.json by other means",
        )
