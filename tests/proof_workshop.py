"""Converted folders to prove, and ways to spoil one that no checksum can see."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import transformers

from convert.cli import main
from tests.architectures_table import ROPE, TABLE, UNTIED, Tiny
from tests.factories_models import write_tokenizer

PLAIN = 0
GROUP = 32
SQUARE = "llama-square"
OWN = {SQUARE: Tiny("Llama", {"rope_parameters": ROPE, "num_key_value_heads": 4, **UNTIED})}

Change = Callable[[mx.array], mx.array]


class Workshop:
    """Tiny sources, and what `convert` makes of each, once for all the tests of a module.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def source(self, name: str) -> Path:
        """A tiny model as transformers saves it, in shards of bfloat16, with a tokenizer."""
        folder = self._folder / name
        if not folder.exists():
            transformers.logging.disable_progress_bar()
            model = (OWN | TABLE)[name].build().bfloat16()
            model.save_pretrained(folder, max_shard_size="100KB")
            write_tokenizer(folder)
        return folder

    def written(self, name: str, bits: int) -> Path:
        """The folder that `convert` makes of it, plain or of so many bits; not to be changed."""
        folder = self._folder / f"{name}-{bits}"
        if not folder.exists():
            assert main([*flags(self.source(name), folder, bits), "--quiet"]) == 0
        return folder

    def spoiled(self, name: str, bits: int, spoil: Callable[[Path], None], to: Path) -> Path:
        """A copy that something was done to, with a receipt to which it is right."""
        shutil.copytree(self.written(name, bits), to)
        spoil(to)
        receipt = json.loads((to / "conversion.json").read_text("utf-8"))
        for entry in receipt["shards"] + receipt["files"]:
            content = (to / entry["file"]).read_bytes()
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (to / "conversion.json").write_text(json.dumps(receipt), "utf-8")
        return to


def flags(source: Path, out: Path, bits: int) -> list[str]:
    """The flags of a conversion."""
    places = ["--hf-path", str(source), "--mlx-path", str(out)]
    return places + (["-q", "--bits", str(bits), "--group-size", str(GROUP)] if bits else [])


def reconfigure(folder: Path, **values: Any) -> None:
    """Change values of config.json, wherever in it they are."""

    def changed(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {key: values.get(key, changed(value)) for key, value in part.items()}

    path = folder / "config.json"
    before = json.loads(path.read_text("utf-8"))
    after = changed(before)
    assert after != before
    path.write_text(json.dumps(after), "utf-8")


def edit(folder: Path, change: Callable[[dict[str, mx.array]], None]) -> None:
    """Change the tensors of a folder of one file."""
    path = folder / "model.safetensors"
    loaded: Any = mx.load(str(path), return_metadata=True)
    tensors, metadata = loaded
    mx.eval(tensors)
    change(tensors)
    mx.save_safetensors(str(path), tensors, metadata)


def rewrite(folder: Path, module: str, change: Change, part: str = "weight") -> None:
    """Write a weight as `change` makes it, packed as it was."""

    def edited(tensors: dict[str, mx.array]) -> None:
        if part != "weight" or f"{module}.scales" not in tensors:
            tensors[f"{module}.{part}"] = change(tensors[f"{module}.{part}"])
            return
        names = [f"{module}.{each}" for each in ("weight", "scales", "biases")]
        form = json.loads((folder / "config.json").read_text("utf-8"))["quantization"]
        how = {"group_size": form["group_size"], "bits": form["bits"]}
        plain = change(mx.dequantize(*(tensors[each] for each in names), **how))
        tensors.update(zip(names, mx.quantize(plain, **how), strict=True))

    edit(folder, edited)


def exchange(folder: Path, one: str, other: str) -> None:
    """Give the tensors under each of two prefixes the other's names."""

    def edited(tensors: dict[str, mx.array]) -> None:
        renamed = {
            (
                name.replace(one, other)
                if name.startswith(one)
                else name.replace(other, one)
                if name.startswith(other)
                else name
            ): array
            for name, array in tensors.items()
        }
        assert renamed.keys() == tensors.keys()
        tensors.update(renamed)

    edit(folder, edited)
