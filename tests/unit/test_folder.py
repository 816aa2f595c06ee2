"""What the files of a model folder are, and which are never touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint.folder import (
    CARRIED_PATTERNS,
    WEIGHT_PATTERNS,
    files_like,
    is_mlx,
    is_staging,
    matches,
    shown,
    staging_path,
)
from configs.errors import SourceError

CARRIED = [
    "LICENSE",
    "LICENSE.txt",
    "Notice",
    "USE_POLICY.md",
    "added_tokens.json",
    "additional_chat_templates/rag.jinja",
    "chat_template.jinja",
    "merges.txt",
    "preprocessor_config.json",
    "qwen.tiktoken",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
]
NOT_CARRIED = [
    "LICENSE.py",
    "README.md",
    "config.json",
    "model.safetensors",
    "modeling_x.py",
    "original/tokenizer.model",
    "tokenization_x.py",
    "tokenizer.json.py",
    "tokenizer.pkl",
    "additional_chat_templates/x.py",
    "additional_chat_templates/a/b.jinja",
]


def test_what_is_carried(tmp_path: Path) -> None:
    for name in CARRIED + NOT_CARRIED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "LICENSES").mkdir()
    assert files_like(tmp_path, CARRIED_PATTERNS) == sorted(CARRIED)


@pytest.mark.parametrize(
    ("name", "is_weight"),
    [
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("consolidated.safetensors", False),
        ("original/model.safetensors", False),
        ("pytorch_model.bin", False),
    ],
)
def test_weights(name: str, is_weight: bool) -> None:
    assert matches(name, WEIGHT_PATTERNS) is is_weight


@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates"])
def test_links_that_leave_are_not_carried(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / name).symlink_to("../elsewhere")
    with pytest.raises(SourceError, match="symbolic link that leaves the folder"):
        files_like(folder, CARRIED_PATTERNS)


@pytest.mark.parametrize(
    ("config", "metadata", "expected"),
    [
        ({}, {"format": "pt"}, False),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, False),
        ({}, {"format": "mlx"}, True),
        ({"quantization": {"bits": 4, "group_size": 64}}, {"format": "pt"}, True),
    ],
)
def test_mlx_folders(config: dict[str, object], metadata: dict[str, str], expected: bool) -> None:
    assert is_mlx(config, metadata) is expected


def test_staging_lies_beside_its_destination() -> None:
    destination = Path("models/name-4bit")
    staging = staging_path(destination)
    assert staging == Path("models/.name-4bit.ferry-staging")
    assert is_staging(staging)
    assert not is_staging(destination)


def test_names_for_a_message() -> None:
    assert shown(["a", "b"]) == "'a', 'b'"
    assert shown("abcdefg") == "'a', 'b', 'c', 'd', 'e' and 2 more"
