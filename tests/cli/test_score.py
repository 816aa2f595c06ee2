"""`infer --score`: a text from a flag, a file or ids; windows; the page; the coloured terminal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from inference.cli import main
from tests.factories_inference import write_mlx
from tests.factories_models import write_tokenizer

TEXT = "the quick brown fox\n你好 <b>"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_mlx(tmp_path / "model")
    write_tokenizer(folder)
    return folder


def score(model: Path, capfd: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    capfd.readouterr()
    assert main(["--model", str(model), "--score", "--json", "--quiet", *flags]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert found.pop("load")["bytes"] > 0  # with seconds that no other run takes
    return found


def test_a_text_scores_the_same_from_wherever_it_comes(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "text"
    file.write_text(TEXT)
    found = score(model, capfd, "--prompt", TEXT)
    assert "".join(token["text"] for token in found["tokens"]) == TEXT
    assert found["tokens"][0]["logprob"] is None and found["tokens"][1]["rank"] >= 1
    bits = sum(token["bits"] for token in found["tokens"][1:])
    assert found["total_bits"] == pytest.approx(bits)
    assert found["perplexity"] == pytest.approx(2 ** (bits / (len(found["tokens"]) - 1)))
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([token["id"] for token in found["tokens"]]))
    assert score(model, capfd, "--text-file", str(file)) == found
    assert score(model, capfd, "--ids-file", str(ids)) == found


def test_windows_are_stated(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = score(model, capfd, "--prompt", TEXT * 8)
    assert whole["window"] is None
    found = score(model, capfd, "--prompt", TEXT * 8, "--window", "16", "--stride", "5")
    assert (found["window"], found["stride"]) == (16, 5)
    bits = [[token["bits"] for token in each["tokens"][1:16]] for each in (found, whole)]
    assert bits[0] == pytest.approx(bits[1])
    assert found["total_bits"] != pytest.approx(whole["total_bits"], rel=1e-6)
    limit = ("--set", "memory.context=20")
    beyond = score(model, capfd, "--prompt", TEXT * 8, *limit)
    assert (beyond["window"], beyond["stride"]) == (20, 10)
    asked = ["--model", str(model), "--score", "--prompt", TEXT * 8, *limit]
    for flags in (["--window", "21"], ["--stride", "20"], ["--window", "5", "--stride", "5"]):
        assert main([*asked, *flags]) == 2
        assert flags[-2] in capfd.readouterr().err
    for flags in (["--window", "1"], ["--stride", "0"], ["--window", "x"]):
        assert main([*asked, *flags]) == 2
        assert "is not a whole number from" in capfd.readouterr().err


def test_the_page_takes_the_place_of_an_old_one(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    found = score(model, capfd, "--prompt", TEXT, "--html", str(page))
    text = page.read_text()
    assert text.startswith("<!doctype html>") and "&lt;" in text and "<b>" not in text
    assert f"{found['total_bits']:,.1f}" in text
    assert sorted(os.listdir(tmp_path)) == ["model", "page.html"]
    asked = [
        "--model",
        str(model),
        "--score",
        "--prompt",
        "x",
        "--html",
        str(tmp_path / "no" / "p"),
    ]
    assert main(asked) == 1


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        ([], "--score"),
        (["--prompt", "x", "--ids-file", "y"], "--ids-file"),
        (["--prompt", "x", "--text-file", "y"], "--text-file"),
        (["--batch", "x", "--prompt", "x"], "--score"),
    ],
)
def test_there_is_one_text(flags: list[str], where: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "nowhere", "--score", *flags]) == 2
    assert capfd.readouterr().err.startswith(f"error: {where}: ")


@pytest.mark.parametrize("colours", [True, False])
def test_a_terminal_shows_colours_unless_it_must_not(colours: bool, model: Path) -> None:
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment.pop("NO_COLOR", None)
    if not colours:
        environment["NO_COLOR"] = "1"
    asked = ["-m", "inference", "--model", str(model), "--score", "--prompt", TEXT]
    child = pexpect.spawn(sys.executable, asked, env=environment, encoding="utf-8", timeout=60)
    shown = child.read()
    assert ("\x1b[" in shown) == colours
    assert ("15+" in shown) == colours
    assert "bits per byte" in shown and "fox" in shown
