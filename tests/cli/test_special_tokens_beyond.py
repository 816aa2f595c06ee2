"""A special token without an embedding: a text-only model of a family that also sees has one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.cli import main as convert
from inference.cli import main as infer


def test_it_is_named_and_only_a_prompt_that_holds_it_is_refused(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = json.loads((llama / "tokenizer.json").read_text())
    image = {"id": 320, "content": "<image_soft_token>", "special": True}
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | image)
    (llama / "tokenizer.json").write_text(json.dumps(tokenizer))
    out = tmp_path / "out"
    assert convert(["--hf-path", str(llama), "--mlx-path", str(out), "--quiet"]) == 0
    warning = capsys.readouterr().err
    assert "warning: " in warning and "'<image_soft_token>' (320)" in warning
    assert "'<image_soft_token>' (320)" in (out / "conversion.json").read_text()

    run = ["--model", str(out), "--max-tokens", "2", "--quiet"]
    assert infer([*run, "--prompt", "hello"]) == 0
    capsys.readouterr()
    assert infer([*run, "--prompt", "see <image_soft_token>", "--raw"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --prompt: ")
    assert "'<image_soft_token>' (token 320)" in error and "320 tokens" in error
