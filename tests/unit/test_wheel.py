"""The wheel holds the four packages, the TOML files and the demo model, and no tests."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hatchling import build

ROOT = Path(__file__).parents[2]


def test_what_the_wheel_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        names = wheel.namelist()
        metadata = next(name for name in names if name.endswith("/entry_points.txt"))
        commands = wheel.read(metadata).decode()
    folders = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert folders == {"configs", "checkpoint", "convert", "inference"}
    assert {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.toml")} <= set(names)
    demo = {f"configs/demo_model/{path.name}" for path in (ROOT / "configs/demo_model").iterdir()}
    assert demo and demo <= set(names)
    assert "convert = convert.__main__:main" in commands
    assert "infer = inference.__main__:main" in commands
