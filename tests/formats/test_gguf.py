"""GGUF files, written by the gguf package: every block type, and each family's names."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer

from checkpoint.gguf_files import tokenizer
from tests.architectures_table import Tiny
from tests.factories_gguf import write_gguf
from tests.factories_models import TEXT, tiny_model
from tests.formats.conversion import converted, distance, refusal

WRITABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_MADE: dict[str, bytes] = {}


@pytest.fixture(autouse=True)
def one_child_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes seconds to start; what it makes of the same metadata is kept."""
    real = tokenizer._asked

    def kept(asked: Mapping[str, Any], path: Path) -> bytes:
        text = json.dumps(asked, sort_keys=True)
        if text not in _MADE:
            _MADE[text] = real(asked, path)
        return _MADE[text]

    monkeypatch.setattr(tokenizer, "_asked", kept)


KEPT = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}


def pair(folder: Path, kind: str, family: str, dtype: str, **more: Any) -> tuple[Path, Path]:
    """The GGUF file, and the plain checkpoint of its values."""
    plain = tiny_model(folder / "plain", kind, **more)
    return write_gguf(plain, folder / f"{family}.gguf", family, dtype), plain


@pytest.mark.parametrize("dtype", WRITABLE)
def test_types(dtype: str, tmp_path: Path) -> None:
    source, plain = pair(tmp_path, "llama", "llama", dtype)
    config, receipt, out = converted(source, "--dtype", "float32")
    assert config["model_type"] == "llama"
    if dtype in KEPT:
        told = config["quantization"]
        assert (told["bits"], told["group_size"], told["mode"]) == (KEPT[dtype], 32, "affine")
        fates = {each["became"] for each in receipt["source_quantization"]}
        assert fates == {"kept: the same numbers"}
    assert any("GGUF" in note for note in receipt["notes"])
    assert distance(out, converted(plain, "--dtype", "float32").folder) < 1e-5


@pytest.mark.parametrize(
    ("kind", "family"), [("qwen2", "qwen2"), ("qwen3_moe", "qwen3moe"), ("llama", "llama")]
)
def test_families(kind: str, family: str, tmp_path: Path) -> None:
    source, plain = pair(tmp_path, kind, family, "Q8_0")
    out = converted(source, "--dtype", "float32").folder
    assert distance(out, converted(plain, "--dtype", "float32").folder) < 1e-5
    again = converted(source, "-q", "--bits", "4", "--dtype", "float32").folder
    expected = converted(plain, "-q", "--bits", "4", "--dtype", "float32").folder
    assert distance(again, expected) < 1e-5


GEMMAS = {
    "gemma": Tiny("Gemma", {"head_dim": 32}),
    "gemma2": Tiny("Gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 512}),
    "gemma3": Tiny(
        "Gemma3Text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "num_hidden_layers": 6,
        },
    ),
    "qwen3": Tiny("Qwen3", {"head_dim": 32}),
}


@pytest.mark.parametrize("family", GEMMAS)
def test_families_of_transformers(family: str, tmp_path: Path) -> None:
    transformers.logging.disable_progress_bar()
    plain = tmp_path / "plain"
    tiny = GEMMAS[family]
    sizes = {**tiny.sizes, "vocab_size": 320, "bos_token_id": 0}
    Tiny(tiny.kind, tiny.values, sizes).build().save_pretrained(plain)
    source = write_gguf(plain, tmp_path / "model.gguf", family, "Q8_0")
    out = converted(source, "--dtype", "float32").folder
    assert distance(out, converted(plain, "--dtype", "float32").folder) < 1e-4


def test_its_tokenizer_and_template(tmp_path: Path) -> None:
    source, plain = pair(tmp_path, "llama", "llama", "Q8_0")
    folder = tmp_path / "folder"
    folder.mkdir()
    source.rename(folder / "model.gguf")
    config, receipt, out = converted(folder)
    assert "GGUF" in receipt["notes"][0]
    assert config["eos_token_id"] == 2
    found = Tokenizer.from_file(str(out / "tokenizer.json"))
    expected = Tokenizer.from_file(str(plain / "tokenizer.json"))
    for text in (TEXT, "<|im_start|>user\nhi<|im_end|>", " two  spaces, 123"):
        assert found.encode(text).ids == expected.encode(text).ids
    assert "messages" in (out / "chat_template.jinja").read_text()
    told = json.loads((out / "tokenizer_config.json").read_text())
    assert told["eos_token"] == "<|im_end|>"


def test_others_are_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, _ = pair(tmp_path, "llama", "llama", "Q8_0")
    content = source.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(content.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1))
    assert "mamba" in refusal(other, capfd)
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (two / name).write_bytes(content)
    assert "2 GGUF files" in refusal(two, capfd)


@pytest.mark.parametrize(
    ("at", "told"),
    [(0, "is no GGUF file"), (4, "version"), (8, "invalid header"), (16, "invalid header")],
)
def test_damaged_headers_are_refused(
    at: int, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, _ = pair(tmp_path, "llama", "llama", "Q8_0")
    content = bytearray(source.read_bytes())
    content[at : at + 4] = struct.pack("<I", 0x7FFFFFFF)
    source.write_bytes(content)
    assert told in refusal(source, capfd)


def test_a_truncated_file_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, _ = pair(tmp_path, "llama", "llama", "Q8_0")
    content = source.read_bytes()
    for size in (3, 30, 900, len(content) - 1000):
        source.write_bytes(content[:size])
        assert "truncated" in refusal(source, capfd)
