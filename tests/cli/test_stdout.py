"""A conversion whose path can't be printed is done all the same, and says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from convert.cli import main

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="/dev/full is Linux's")
def test_a_conversion_whose_stdout_is_full(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    with FULL.open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code = main(["--hf-path", str(llama), "--mlx-path", str(made), "--quiet"])
        monkeypatch.undo()
    assert code == 1 and (made / "config.json").is_file()
    err = capfd.readouterr().err
    assert err == f"error: stdout: No space left on device; {made} is whole all the same\n"
