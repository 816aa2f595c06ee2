"""transformers' run of a source, without the seconds its child process takes to start."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ArchitectureError
from convert.proof import reference
from convert.proof.reference import FLAG, WITHOUT, Source, Step, order_for
from convert.proof.transformers_child import SETTINGS, carry_out
from convert.proof.transformers_model import UnprovableError


class InProcess:
    """What `run_transformers` does, once for each source; no source may change meanwhile.

    Args:
        kept: A folder for what was computed.
    """

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._facts: dict[tuple[Path, bool], tuple[Path, dict[str, Any]]] = {}

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `--prove` ask this in place of a process."""
        for name, value in SETTINGS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(reference, "run_transformers", self)

    def __call__(self, source: Source, folder: Path | None, step: Step) -> dict[str, Any]:
        key = (source.path, folder is not None)
        if key not in self._facts:
            self._facts[key] = self._compute(source, folder is not None)
        kept, facts = self._facts[key]
        if folder is not None:
            shutil.copytree(kept, folder, dirs_exist_ok=True)
        return facts

    def _compute(self, source: Source, whole: bool) -> tuple[Path, dict[str, Any]]:
        kept = Path(tempfile.mkdtemp(dir=self._kept))
        order = order_for(source, kept if whole else None)
        with warnings.catch_warnings(action="ignore"):
            try:
                facts = carry_out(order, lambda **_: None)
            except UnprovableError as error:
                raise ArchitectureError(FLAG, str(error), WITHOUT) from error
        return kept, facts | {"peak_memory_bytes": 0}
