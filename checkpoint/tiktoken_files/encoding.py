"""What tiktoken holds of a tokenizer: ranks of byte strings, a pattern, special tokens.

Owns those three, checked, and how they are read from a pickled `Encoding`. Knows nothing
of the `tokenizers` library's form of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoint import disk
from checkpoint.json_file import quoted
from checkpoint.pickles.unpickle import Record, load
from configs.errors import TokenizerError

_ENCODING = "tiktoken.core.Encoding"
_AGAIN = "save the tokenizer as tokenizer.json"
_LIMIT = 100_000_000
_LARGEST_ID = 2**32 - 2


@dataclass(frozen=True)
class Encoding:
    """A tokenizer of tiktoken's.

    Attributes:
        pattern: The regular expression, of Rust's kind, that cuts text into pieces.
        ranks: Byte strings and their ids; pairs of low rank are merged first.
        special: Tokens that stand for themselves, by their text, and their ids.
        where: The file it is from.

    Raises:
        TokenizerError: An id is given twice, or can't be one; a byte has none.
    """

    pattern: str
    ranks: Mapping[bytes, int]
    special: Mapping[str, int]
    where: Path

    def __post_init__(self) -> None:
        by_id: dict[int, object] = {}
        for token, number in (*self.ranks.items(), *self.special.items()):
            if type(number) is not int or not 0 <= number <= _LARGEST_ID:
                self._refuse(f"gives {quoted(str(token))} the id {number!r}")
            if number in by_id:
                both = f"{quoted(str(by_id[number]))} and to {quoted(str(token))}"
                self._refuse(f"gives the id {number} to {both}")
            by_id[number] = token
        missing = [value for value in range(256) if bytes([value]) not in self.ranks]
        if missing:
            self._refuse(f"has no token for the byte {missing[0]} and {len(missing) - 1} others")
        if "" in self.special or b"" in self.ranks:
            self._refuse("has a token without text")

    @property
    def highest_id(self) -> int:
        """Of all tokens."""
        return max(*self.ranks.values(), *self.special.values())

    def beyond(self, rows: int | None) -> tuple[str, ...]:
        """Special tokens that an embedding of so many rows has none for, each with its id.

        Raises:
            TokenizerError: An ordinary token has none.
        """
        if rows is None:
            return ()
        highest = max(self.ranks.values())
        if highest >= rows:
            what = f"has token id {highest}, and the embedding has {rows} rows"
            mend = "use the tokenizer that belongs to these weights"
            raise TokenizerError(self.where, what, mend)
        late = sorted((number, text) for text, number in self.special.items() if number >= rows)
        return tuple(f"{quoted(text)} ({number})" for number, text in late)

    def _refuse(self, what: str) -> None:
        raise TokenizerError(self.where, what, _AGAIN)


def read_pickled(path: Path) -> Encoding:
    """Read a pickled `tiktoken.Encoding` without tiktoken; nothing in the pickle is run.

    Raises:
        TokenizerError: It holds something else, or only the name of an encoding.
        PickleError: It is no pickle that can be read.
    """
    found = load(disk.read_whole(path, _LIMIT), {_ENCODING}, path, mend=_AGAIN)
    if not isinstance(found, Record) or found.name != _ENCODING or found.args or found.kwargs:
        raise TokenizerError(path, "does not hold one tiktoken Encoding", _AGAIN)
    state = found.state
    if isinstance(state, str):
        what = f"holds only the name {quoted(state)} of an encoding, which tiktoken would fetch"
        raise TokenizerError(path, what, _AGAIN)
    match state:
        case {
            "pat_str": str(pattern),
            "mergeable_ranks": dict(ranks),
            "special_tokens": dict(special),
        }:
            pass
        case _:
            raise TokenizerError(path, "holds an Encoding without its ranks or pattern", _AGAIN)
    if not all(type(token) is bytes for token in ranks):
        raise TokenizerError(path, "has ranks of what is no byte string", _AGAIN)
    if not all(type(token) is str for token in special):
        raise TokenizerError(path, "has a special token that is no text", _AGAIN)
    return Encoding(pattern, ranks, special, path)
