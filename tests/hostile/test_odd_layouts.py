"""Folders that hold something else than one language model: each refused by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.cli import main
from inference.cli import main as infer

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
PARAMS = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 320}


@pytest.mark.parametrize(
    ("files", "what", "mend"),
    [
        (
            {"model_index.json": {}, "unet/config.json": {}},
            "holds a diffusion pipeline (model_index.json)",
            "language model",
        ),
        ({"unet/config.json": {}}, "holds a diffusion pipeline (unet)", "language model"),
        (
            {"adapter_config.json": ADAPTER, "adapter_model.safetensors": {}},
            "holds an adapter alone (adapter_config.json)",
            "fuse it into its base model",
        ),
        ({"adapter_model.bin": {}}, "holds an adapter alone (adapter_model.bin)", "fuse it"),
        (
            {"params.json": PARAMS, "consolidated.safetensors": {}},
            "only in Mistral's or Meta's own layout (consolidated.safetensors)",
            "in transformers' layout",
        ),
        (
            {"config.json": {"model_type": "llama"}, "consolidated.00.pth": {}},
            "only in its maker's own layout (consolidated.00.pth)",
            "in transformers' layout",
        ),
        (
            {"config.json": {"model_type": "siglip_vision_model"}, "model.safetensors": {}},
            "is of a model of images alone, no language model ('siglip_vision_model')",
            "give the folder of a language model",
        ),
        (
            {"config.json": {"model_type": "x", "architectures": ["XForImageClassification"]}},
            "is of a model of images alone",
            "give the folder of a language model",
        ),
    ],
)
def test_it_is_named(
    tmp_path: Path,
    files: dict[str, object],
    what: str,
    mend: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "source"
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(json.dumps(content))
    for command, flags in (
        (main, ["--hf-path", str(source), "--mlx-path", str(tmp_path / "out")]),
        (infer, ["--model", str(source), "--prompt", "hello"]),
    ):
        assert command(flags) == 1
        error = capfd.readouterr().err
        assert what in error
        assert mend in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
