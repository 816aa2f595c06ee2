"""nanochat from a hub, in Hugging Face's layout, and where it can't be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from huggingface_hub import close_session
from safetensors.numpy import save_file

from convert.cli import main as convert
from inference.cli import main as infer
from inference.device import Placement
from inference.load import load, open_folder
from tests.factories_models import write_tokenizer as write_hf_tokenizer
from tests.factories_nanochat import sizes_of, write_checkpoint, write_tokenizer
from tests.hub_server import Hub, point_library_at, serving
from tests.nanochat_reference import ERAS, logits, random_weights

IDS = [int(value) for value in np.random.default_rng(5).integers(0, 300, 40)]
_TO_HF = (
    (r"^transformer\.wte\.", "model.embed_tokens."),
    (r"^transformer\.h\.", "model.layers."),
    (r"\.attn\.c_([qkv])\.", r".self_attn.\1_proj."),
    (r"\.attn\.c_proj\.", ".self_attn.o_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def off(folder: Path, weights: Any, sizes: dict[str, Any], era: str) -> float:
    model = load(open_folder(folder), Placement("cpu", "float32")).model
    found = np.array(model(mx.array([IDS]))[0])
    return float(np.abs(found - logits(weights, sizes, ERAS[era], IDS)).max())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        point_library_at(hub, str(tmp_path / "cache"), monkeypatch)
        yield hub
        close_session()


@pytest.mark.parametrize("place", ["", "tokenizer"])
def test_from_a_hub(hub: Hub, place: str, tmp_path: Path) -> None:
    sizes = sizes_of("E4")
    weights = random_weights("E4", sizes)
    source = tmp_path / "source"
    write_checkpoint(source, random_weights("E4", sizes, 1), sizes, step=90)
    write_checkpoint(source, weights, sizes)
    write_tokenizer(source / place)
    files = {
        str(path.relative_to(source)): path.read_bytes()
        for path in source.rglob("*")
        if path.is_file()
    }
    hub.add("org/nano", files | {"optim_000650_rank0.pt": b"large", "README.md": b"# nano"})
    made = tmp_path / "made"

    assert convert(["--hf-path", "org/nano", "--mlx-path", str(made), "--quiet"]) == 0
    assert off(made, weights, sizes, "E4") < 1e-3
    assert not list((tmp_path / "cache").rglob("optim*"))
    assert not list((tmp_path / "cache").rglob("model_000090.pt"))

    again = tmp_path / "again"
    assert convert(["--hf-path", "org/nano", "--mlx-path", str(again), "--quiet"]) == 0


def hugging_face(folder: Path, prefix: str = "", **changed: Any) -> tuple[Any, dict[str, Any]]:
    """The first era in Hugging Face's layout, its vocabulary padded."""
    sizes = sizes_of("E0", vocab_size=330)
    weights = random_weights("E0", sizes)
    named = {}
    for name, value in weights.items():
        for pattern, replacement in _TO_HF:
            name = re.sub(pattern, replacement, name)
        named[prefix + name] = value
    folder.mkdir()
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "nanochat",
        "architectures": ["NanoChatForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 330,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config | changed))
    write_hf_tokenizer(folder)
    return weights, sizes


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_hugging_faces_layout(prefix: str, tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    weights, sizes = hugging_face(source, prefix, logits_soft_cap=15.0)

    assert convert(["--hf-path", str(source), "--mlx-path", str(made), "--quiet"]) == 0

    assert off(made, weights, sizes, "E0") < 1e-3
    config = json.loads((made / "config.json").read_text())
    assert config["final_logit_softcapping"] == 15.0 and "logits_soft_cap" not in config
    assert off(source, weights, sizes, "E0") < 1e-3  # as it is, too


def test_a_softcap_by_its_old_name_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    hugging_face(source, logits_soft_cap=20.0)

    assert convert(["--hf-path", str(source), "--mlx-path", str(tmp_path / "made")]) == 1

    assert "final_logit_softcapping 20.0" in capsys.readouterr().err


def test_infer_says_to_convert_nanochats_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = sizes_of("E4")
    source = write_checkpoint(tmp_path / "d5", random_weights("E4", sizes), sizes)

    assert infer(["--model", str(source), "--prompt", "the"]) == 1

    assert "nanochat's own; convert it" in capsys.readouterr().err
