"""What an audit has found: checks that passed, problems, warnings, and how they are told.

Owns the collecting, which never stops at a problem and never grows without bound.
Knows nothing of what is checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.command import escape
from configs.errors import FerryError

MOST_NAMED = 20
"""Problems of one check that are named; of more only the number is told."""
_MOST_WARNINGS = 20

State = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    check: str
    where: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}"
        return f"{line}; {self.mend}" if self.mend else line


@dataclass(frozen=True)
class Check:
    """One check and how it went.

    Attributes:
        name: What was looked at.
        state: How it went.
        detail: What was found in order; or why it could not be checked.
        problems: How many problems it found, named or not.
    """

    name: str
    state: State
    detail: str
    problems: int = 0


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        folder: The folder.
        kind: What it is, in words.
        checks: Every check, in order.
        problems: What is wrong; empty for a folder that is right.
        warnings: What is odd but does no harm, one line each.
    """

    folder: Path
    kind: str
    checks: tuple[Check, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """What `--verify --json` prints."""
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "ok": not self.problems,
            "checks": [asdict(check) for check in self.checks],
            "problems": [asdict(problem) for problem in self.problems],
            "warnings": list(self.warnings),
        }

    def text(self) -> str:
        """The checks as a table, then the problems and warnings, one line each."""
        width = max(len(check.name) for check in self.checks)
        states = max(len(check.state) for check in self.checks)
        lines = [f"{self.folder}: {self.kind}"]
        lines += [
            f"  {check.name.ljust(width)}  {check.state.ljust(states)}  {check.detail}".rstrip()
            for check in self.checks
        ]
        lines += [f"problem: {problem}" for problem in self.problems]
        unnamed = sum(check.problems for check in self.checks) - len(self.problems)
        if unnamed:
            lines.append(f"problem: and {unnamed:,} more like them")
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines.append(self._verdict())
        return "\n".join(map(escape, lines))

    def _verdict(self) -> str:
        if self.problems:
            count = sum(check.problems for check in self.checks)
            return f"NOT in order: {count:,} {'problem' if count == 1 else 'problems'}"
        skipped = [check.name for check in self.checks if check.state == "not checked"]
        return f"in order, but not checked: {', '.join(skipped)}" if skipped else "in order"


@dataclass
class Findings:
    """Collects while the checks go on."""

    checks: dict[str, Check] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _more_warnings: int = 0

    def passed(self, name: str, detail: str) -> None:
        """A check is done; it is `ok` unless a problem of it was told."""
        before = self.checks.get(name)
        if before is None or before.state != "failed":
            self.checks[name] = Check(name, "ok", detail)

    def skipped(self, name: str, why: str) -> None:
        """A check could not be made."""
        if name not in self.checks:
            self.checks[name] = Check(name, "not checked", why)

    def problem(self, name: str, where: str | Path, what: str, mend: str = "") -> None:
        """Something is wrong."""
        before = self.checks.get(name)
        count = 1 + (before.problems if before is not None else 0)
        told = f"{count:,} {'problem' if count == 1 else 'problems'}"
        self.checks[name] = Check(name, "failed", told, count)
        if count <= MOST_NAMED:
            self.problems.append(Problem(name, str(where), what, mend))

    def failed(self, name: str, error: FerryError) -> None:
        """Something is wrong, as an error tells it; not told twice."""
        problem = Problem(name, error.where, error.what, error.mend)
        if all(str(problem) != str(known) for known in self.problems):
            self.problem(name, problem.where, problem.what, problem.mend)

    @contextmanager
    def checking(self, name: str) -> Iterator[None]:
        """A block whose typed errors are problems of this check, and end the block only."""
        try:
            yield
        except FerryError as error:
            self.failed(name, error)

    def is_failed(self, name: str) -> bool:
        """Whether a check has found a problem."""
        return name in self.checks and self.checks[name].state == "failed"

    def warn(self, line: str) -> None:
        """Something is odd but does no harm."""
        if len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(line)
        else:
            self._more_warnings += 1

    def result(self, folder: Path, kind: str, order: tuple[str, ...]) -> Audit:
        """The audit, its checks in this order."""
        warnings = tuple(self.warnings)
        if self._more_warnings:
            warnings = (*warnings, f"and {self._more_warnings:,} more like these")
        checks = tuple(self.checks[name] for name in order if name in self.checks)
        return Audit(folder, kind, checks, tuple(self.problems), warnings)
