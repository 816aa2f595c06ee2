"""What a comparison of two model folders has found, and how it is told.

Owns the figures of each tensor and of all together, as JSON and as a table. Knows
nothing of how they were measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from checkpoint.folder import shown
from configs.command import escape

_MOST_SHOWN = 20
_LONGEST_VALUE = 40

State = Literal["equal", "same values", "differs"]


@dataclass(frozen=True)
class Sums:
    """What is added up over the elements of tensors, for A and B.

    Attributes:
        error: Of (A - B)^2.
        one: Of A^2.
        other: Of B^2.
    """

    error: float = 0.0
    one: float = 0.0
    other: float = 0.0

    def __add__(self, more: Sums) -> Sums:
        return Sums(
            self.error + more.error,
            self.one + more.one,
            self.other + more.other,
        )

    @property
    def relative_error(self) -> float | None:
        """Frobenius norm of the difference by that of A; None where A is zero and B is not."""
        if not self.error:
            return 0.0
        return math.sqrt(self.error / self.one) if self.one else None

    @property
    def cosine(self) -> float | None:
        """Of the angle between A and B; None where one of them is zero."""
        if not self.one or not self.other:
            return None
        product = (self.one + self.other - self.error) / 2
        return max(-1.0, min(1.0, product / math.sqrt(self.one) / math.sqrt(self.other)))


@dataclass(frozen=True)
class TensorDiff:
    """One tensor that both folders have, in the same shape.

    Attributes:
        name: The tensor, or the weight that several make together.
        shape: Its shape before packing.
        one: How A holds it: a dtype, or the form it is packed in.
        other: How B does.
        state: `equal` in every bit and in dtype or form; of the `same values`; or not.
        sums: None when a value is infinite or NaN.
        largest: The largest absolute difference of two elements; None as `sums`.
    """

    name: str
    shape: tuple[int, ...]
    one: str
    other: str
    state: State
    sums: Sums | None
    largest: float | None

    @property
    def relative_error(self) -> float | None:
        """As `Sums` has it; None too when a value is infinite or NaN."""
        return None if self.sums is None else self.sums.relative_error

    @property
    def rank(self) -> float:
        """The worse, the higher."""
        if self.state != "differs":
            return 0.0
        return math.inf if self.relative_error is None else self.relative_error

    def as_json(self) -> dict[str, Any]:
        """Its entry in `--diff --json`."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "a": self.one,
            "b": self.other,
            "state": self.state,
            "relative_error": self.relative_error,
            "largest_difference": self.largest,
            "cosine": None if self.sums is None else self.sums.cosine,
        }


@dataclass(frozen=True)
class Reshaped:
    """A tensor that the folders have in different shapes."""

    name: str
    one: tuple[int, ...]
    other: tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """A value or file that differs.

    Attributes:
        name: A key of config.json, with dots; or a file's name.
        one: What A has, short; None if it has none.
        other: What B has.
    """

    name: str
    one: str | None
    other: str | None

    def as_json(self) -> dict[str, Any]:
        """Its entry in `--diff --json`."""
        return {"name": self.name, "a": self.one, "b": self.other}

    def __str__(self) -> str:
        one, other = (_short(value) for value in (self.one, self.other))
        return f"{self.name}: {one} -> {other}"


@dataclass(frozen=True)
class Compared:
    """A folder that took part.

    Attributes:
        path: The folder.
        kind: What it is, in words.
        only: Tensors that the other one has not.
    """

    path: Path
    kind: str
    only: tuple[str, ...]


@dataclass(frozen=True)
class Diff:
    """The result.

    Attributes:
        one: A, to which errors are relative.
        other: B.
        tensors: Those that both have, by name.
        reshaped: Those that both have in different shapes.
        config: What differs in config.json.
        files: Which files of the tokenizer differ.
        notes: How the tensors of one were matched with those of the other.
    """

    one: Compared
    other: Compared
    tensors: tuple[TensorDiff, ...]
    reshaped: tuple[Reshaped, ...]
    config: tuple[Change, ...]
    files: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether both have the same tensors, each of the same values, however packed."""
        apart = self.one.only or self.other.only or self.reshaped or not self.tensors
        return not apart and all(tensor.state != "differs" for tensor in self.tensors)

    @property
    def sums(self) -> Sums:
        """Over all tensors of finite values."""
        return sum((each.sums for each in self.tensors if each.sums is not None), Sums())

    def as_json(self) -> dict[str, Any]:
        """What `--diff --json` prints."""
        counts = self._counts()
        worst = max(self.tensors, key=lambda tensor: tensor.rank, default=None)
        return {
            "a": str(self.one.path),
            "b": str(self.other.path),
            "equal": self.equal,
            "compared": len(self.tensors),
            "tensors_equal": counts["equal"],
            "tensors_same_values": counts["same values"],
            "tensors_differ": counts["differs"],
            "relative_error": self.sums.relative_error,
            "worst": worst.name if worst is not None and worst.rank else None,
            "tensors": [tensor.as_json() for tensor in self.tensors],
            "shapes_differ": [
                {"name": each.name, "a": list(each.one), "b": list(each.other)}
                for each in self.reshaped
            ],
            "only_in_a": list(self.one.only),
            "only_in_b": list(self.other.only),
            "config": [change.as_json() for change in self.config],
            "files": [change.as_json() for change in self.files],
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """The worst tensors, each kind of tensor, what else differs, and the totals."""
        lines = [
            f"A: {self.one.path} ({self.one.kind})",
            f"B: {self.other.path} ({self.other.kind})",
            *self.notes,
        ]
        differing = sorted(
            (tensor for tensor in self.tensors if tensor.state == "differs"),
            key=lambda tensor: (-tensor.rank, tensor.name),
        )
        if differing:
            lines += ["", *_worst(differing)]
        if len(differing) > _MOST_SHOWN:
            lines += ["", *_kinds(differing)]
        apart = [f"only in A: {shown(self.one.only)}"] if self.one.only else []
        apart += [f"only in B: {shown(self.other.only)}"] if self.other.only else []
        apart += _some(
            "shape differs: ",
            [f"{each.name}: {list(each.one)} -> {list(each.other)}" for each in self.reshaped],
        )
        apart += _some("config.json: ", list(map(str, self.config)))
        apart += _some("file differs: ", list(map(str, self.files)))
        lines += ["", *apart] if apart else []
        return "\n".join(map(escape, [*lines, "", self._totals()]))

    def _counts(self) -> dict[str, int]:
        counts = dict.fromkeys(("equal", "same values", "differs"), 0)
        for tensor in self.tensors:
            counts[tensor.state] += 1
        return counts

    def _totals(self) -> str:
        counts = self._counts()
        told = [f"{counts['equal']:,} equal"]
        if counts["same values"]:
            told.append(f"{counts['same values']:,} of the same values in another form")
        told.append(f"{counts['differs']:,} differ")
        line = f"{len(self.tensors):,} tensors compared: {', '.join(told)}"
        if counts["differs"]:
            line += f"; relative error of all together {_figure(self.sums.relative_error)}"
        return f"{line}. The weights are {'equal' if self.equal else 'NOT equal'}."


def _worst(differing: Sequence[TensorDiff]) -> list[str]:
    rows = [("tensor", "A", "B", "relative error", "largest", "cosine")]
    rows += [
        (
            tensor.name,
            tensor.one,
            tensor.other,
            _figure(tensor.relative_error),
            _figure(tensor.largest),
            "-" if tensor.sums is None else _figure(tensor.sums.cosine, "{:.6f}"),
        )
        for tensor in differing[:_MOST_SHOWN]
    ]
    lines = _table(rows, left=3)
    more = len(differing) - _MOST_SHOWN
    return [*lines, f"... and {more:,} more, all in --json"] if more > 0 else lines


def _kinds(differing: Iterable[TensorDiff]) -> list[str]:
    """Tensors of a name, whatever their layer, added up."""
    kinds: dict[str, list[TensorDiff]] = {}
    for tensor in differing:
        kinds.setdefault(".".join(tensor.name.split(".")[-2:]), []).append(tensor)
    rows = [("kind", "tensors", "relative error", "worst")]
    for kind, tensors in kinds.items():
        sums = sum((each.sums for each in tensors if each.sums is not None), Sums())
        worst = max(tensors, key=lambda tensor: tensor.rank).relative_error
        rows.append((kind, str(len(tensors)), _figure(sums.relative_error), _figure(worst)))
    return _table(rows, left=1)


def _table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns of equal width, the first few set left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _some(what: str, lines: Sequence[str]) -> list[str]:
    told = [f"{what}{line}" for line in lines[:_MOST_SHOWN]]
    more = len(lines) - _MOST_SHOWN
    return [*told, f"{what}... and {more:,} more, all in --json"] if more > 0 else told


def _figure(value: float | None, form: str = "{:.3e}") -> str:
    return "-" if value is None else form.format(value)


def _short(value: str | None) -> str:
    if value is None:
        return "(absent)"
    return value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}…"


def as_text(value: Any) -> str:
    """A value of config.json as `Change` holds it."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
