"""GGUF's block types against the gguf package's own reading of random bytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf.quants import dequantize

from checkpoint.architecture.kept import kept
from checkpoint.architecture.reader import TensorReader
from checkpoint.gguf_files.blocks import block_weight
from checkpoint.gguf_files.header import BLOCKS
from checkpoint.tensors import TensorRef

KINDS = [name for name, _, _ in BLOCKS.values()]


def random_blocks(name: str, rows: int, blocks: int) -> np.ndarray:
    """Random bytes, the float16 among them tamed to be numbers."""
    _, _, size = next(told for told in BLOCKS.values() if told[0] == name)
    found = np.random.default_rng(3).integers(0, 256, (rows, blocks, size), np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}
    two = ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
    for at in halves.get(name, (0, 2) if name in two else (0,)):
        values = np.random.default_rng(at).uniform(0.01, 0.2, (rows, blocks, 1)).astype(np.float16)
        found[..., at : at + 2] = values.view(np.uint8)
    return found.reshape(rows, blocks * size)


@pytest.mark.parametrize("name", KINDS)
def test_values_and_kept_codes(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    assert (name, weights, size) in BLOCKS.values()
    blocks = 512 // weights
    data = random_blocks(name, 6, blocks)
    (tmp_path / "blocks").write_bytes(data.tobytes())
    expected = mx.array(dequantize(data, kind))
    ref = TensorRef(tmp_path / "blocks", "w", name, (6, blocks, size), 0, data.size)
    recipe = block_weight(ref, mx.float32)
    assert recipe.shape == (6, 512)
    with TensorReader() as reader:
        for box in (((0, 6), (0, 512)), ((2, 5), (37, 300))):
            found = recipe.read(box, reader)
            cut = expected[tuple(slice(*side) for side in box)]
            assert mx.allclose(found, cut, rtol=1e-6, atol=1e-6).item()
        packed = kept(recipe)
        if name in ("Q2_K", "Q3_K", "Q6_K"):
            assert packed is None
            return
        assert packed is not None
        codes, scales, biases = packed.read(((0, 6), (0, 512)), reader)
    form = packed.form
    assert (form.bits, form.group_size) == (int(name[1]), 32)
    values = mx.dequantize(codes, scales, biases, group_size=32, bits=form.bits)
    assert mx.allclose(values, expected, rtol=1e-5, atol=1e-5).item()
