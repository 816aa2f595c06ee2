"""nanochat checkpoints in that project's own save format, tiny and random, and their models."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from checkpoint.architecture.mlx_lm_models import load_classes
from checkpoint.architecture.names import adapt_weights
from checkpoint.nanochat.chat import CHAT_TOKENS
from checkpoint.nanochat.eras import recognise
from checkpoint.nanochat.model_config import Overrides, describe, read_sizes

SHARED = Path(__file__).parents[2] / "shared" / "nanochat"
REFERENCES = {
    "306bc38": "E0",
    "f1bf69d": "E0",
    "aa530cd": "E1",
    "2e17723": "E2",
    "6ed7d1d": "E3",
    "92d63d4": "E4",
}
SIZES: dict[str, Any] = {
    "sequence_len": 512,
    "vocab_size": 300,
    "n_layer": 5,
    "n_head": 4,
    "n_kv_head": 2,
    "n_embd": 64,
    "window_pattern": "SSSL",
}
_WORDS = (b"th", b"he", b"the", b" t", b" the", b"in", b"er", b"an", b"on", b"re", b"12", b"34")
Weights = Mapping[str, NDArray[Any]]


def sizes_of(era: str, **changed: Any) -> dict[str, Any]:
    """`model_config` of an era; the first had no windows."""
    sizes = {**SIZES, **changed}
    if era == "E0":
        del sizes["window_pattern"]
    return sizes


def config_of(
    weights: Weights, sizes: Mapping[str, Any], overrides: Overrides | None = None
) -> dict[str, Any]:
    """The config.json that a checkpoint gets."""
    shapes = {name: value.shape for name, value in weights.items()}
    found = read_sizes({"model_config": dict(sizes)}, Path("meta.json"))
    described = describe(found, recognise(shapes), shapes, overrides or Overrides(), Path("meta"))
    return described.config


def model_of(config: Mapping[str, Any], weights: Weights) -> nn.Module:
    """The model of a config.json with a checkpoint's weights."""
    classes = load_classes(config["model_type"])
    model: nn.Module = classes.model(classes.args.from_dict(dict(config)))
    adapted, _ = adapt_weights(config, {name: mx.array(value) for name, value in weights.items()})
    model.load_weights(list(adapted.items()), strict=True)
    return model


def read_reference(name: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any], dict[str, Any]]:
    """Weights, `model_config`, and what nanochat itself computed: ids, logits, greedy ids."""
    from checkpoint.pickles.archive import read_archive

    folder = SHARED / name
    path = folder / "model_000650.pt"
    data = path.read_bytes()
    weights = {
        name: np.frombuffer(data, "<f4", ref.nbytes // 4, ref.offset).reshape(ref.shape)
        for name, ref in read_archive(path).tensors.items()
    }
    meta = json.loads((folder / "meta_000650.json").read_text())
    with np.load(folder / "ref.npz") as found:
        told = {"ids": found["ids"][0].tolist(), "logits": found["logits"][0]}
        return weights, meta["model_config"], told | {"greedy": found["greedy"].tolist()}


def write_checkpoint(
    folder: Path,
    weights: Weights,
    sizes: Mapping[str, Any],
    *,
    step: int = 650,
    prefix: str = "",
    half: tuple[str, ...] = (),
) -> Path:
    """model_NNNNNN.pt and its meta file, as nanochat saves them.

    Args:
        folder: Made where it is not there.
        weights: As nanochat names them.
        sizes: `model_config`.
        step: Of training.
        prefix: Before every name, as of a compiled model.
        half: Beginnings of names of tensors that are kept in bfloat16.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, value in weights.items():
        tensor = torch.from_numpy(np.array(value))
        state[prefix + name] = tensor.bfloat16() if half and name.startswith(half) else tensor
    torch.save(state, folder / f"model_{step:06d}.pt")
    meta = {"step": step, "val_bpb": 0.9, "model_config": dict(sizes), "user_config": {}}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))
    return folder


def write_tokenizer(folder: Path, vocabulary: int = SIZES["vocab_size"]) -> Path:
    """tokenizer.pkl: all bytes, a few words, as many made-up ones as are wanted, nine specials."""
    import tiktoken

    folder.mkdir(parents=True, exist_ok=True)
    ranks = {bytes([value]): value for value in range(256)}
    for word in (*_WORDS, *(bytes([65 + i // 26, 97 + i % 26]) for i in range(26 * 26))):
        if len(ranks) < vocabulary - len(CHAT_TOKENS):
            ranks.setdefault(word, len(ranks))
    special = {token: len(ranks) + index for index, token in enumerate(CHAT_TOKENS)}
    pattern = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )
    encoding = tiktoken.Encoding(
        "rustbpe", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    return folder
