"""What the documents show of the commands is what the commands say of themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "write_docs.py"


def test_the_documents_are_as_the_script_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # which must not matter
    spec = importlib.util.spec_from_file_location("write_docs", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    documents = script.documents()
    assert len(documents) == 3
    for path, text in documents.items():
        assert path.read_text("utf-8") == text, f"{path.name}: run scripts/write_docs.py"
