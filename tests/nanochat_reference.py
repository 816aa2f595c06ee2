"""nanochat in float64 numpy: every era of it, plainly, to hold the real one against.

Owns what a nanochat model computes, written from that project's own description and held
against its own logits where they are at hand. Imports nothing of the project's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]

EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Constants:
    """What an era has built in, and no file says.

    Attributes:
        theta: Of the rotation.
        softcap: Of the logits.
        scale: Of queries and keys, after their norm.
        gate: The factor before the sigmoid of the value embeddings' gate.
        gate_width: How much of a layer's input that gate sees; 0 without value embeddings.
        short: Of the context, what a short window is divided by.
        short_multiple: What a short window is rounded up to.
        lambdas: Whether the residual stream is scaled, and the embedding added to it.
        smear: Whether the embedding of the token before is added to each.
        backout: Whether the middle of the residual stream is taken off its end.
    """

    theta: float = 1e4
    softcap: float = 15.0
    scale: float = 1.0
    gate: float = 2.0
    gate_width: int = 0
    short: int = 2
    short_multiple: int = 1
    lambdas: bool = True
    smear: bool = False
    backout: bool = False

    def window(self, kind: str, context: int) -> int:
        """How many tokens back a layer of this kind, "S" or "L", sees."""
        if kind == "L":
            return context
        if self.short_multiple == 1:
            return context // self.short
        return -(-context // self.short // self.short_multiple) * self.short_multiple


ERAS: Mapping[str, Constants] = {
    "E0": Constants(lambdas=False),
    "E1": Constants(),
    "E2": Constants(gate_width=32),
    "E3": Constants(1e5, 15.0, 1.15, 3.0, 12, short=3, short_multiple=128),
    "E4": Constants(1e5, 15.0, 1.2, 3.0, 12, short=4, short_multiple=128, smear=True, backout=True),
}


def windows(constants: Constants, config: Mapping[str, Any]) -> list[int]:
    """How many tokens back each layer sees; the last one always the whole context."""
    pattern = str(config.get("window_pattern", "L"))
    context, layers = config["sequence_len"], config["n_layer"]
    found = [constants.window(pattern[layer % len(pattern)], context) for layer in range(layers)]
    return [*found[:-1], context]


def logits(
    weights: Weights,
    config: Mapping[str, Any],
    constants: Constants,
    ids: Sequence[int],
    seen: Sequence[int] | None = None,
) -> Array:
    """What the model says after each token.

    Args:
        weights: As nanochat names them.
        config: `model_config` of nanochat's meta file.
        constants: Those of the era.
        ids: [n].
        seen: How far back each layer sees, where not as `windows` has it.

    Returns:
        [n, vocab_size].
    """
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    tokens = np.asarray(ids)
    seen = windows(constants, config) if seen is None else seen
    x = _norm(w["transformer.wte.weight"][tokens])
    if constants.smear:
        gate = w["smear_lambda"] * _sigmoid(x[1:, :24] @ w["smear_gate.weight"].T)
        x = np.concatenate([x[:1], x[1:] + gate * x[:-1]])
    embedded, middle = x, x
    for layer in range(config["n_layer"]):
        if constants.lambdas:
            x = w["resid_lambdas"][layer] * x + w["x0_lambdas"][layer] * embedded
        x = x + _attention(w, config, constants, layer, _norm(x), tokens, seen[layer])
        hidden = _norm(x) @ w[f"transformer.h.{layer}.mlp.c_fc.weight"].T
        x = x + np.maximum(hidden, 0) ** 2 @ w[f"transformer.h.{layer}.mlp.c_proj.weight"].T
        if layer == config["n_layer"] // 2:
            middle = x
    if constants.backout:
        x = x - w["backout_lambda"] * middle
    found = _norm(x) @ w["lm_head.weight"][: config["vocab_size"]].T
    return np.asarray(constants.softcap * np.tanh(found / constants.softcap))


def _attention(
    w: Mapping[str, Array],
    config: Mapping[str, Any],
    constants: Constants,
    layer: int,
    h: Array,
    tokens: NDArray[Any],
    window: int,
) -> Array:
    heads, shared = config["n_head"], config["n_kv_head"]
    name, count, size = f"transformer.h.{layer}.attn", len(tokens), config["n_embd"] // heads
    q = (h @ w[f"{name}.c_q.weight"].T).reshape(count, heads, size)
    k = (h @ w[f"{name}.c_k.weight"].T).reshape(count, shared, size)
    v = (h @ w[f"{name}.c_v.weight"].T).reshape(count, shared, size)
    table = w.get(f"value_embeds.{layer}.weight")
    if table is not None:
        gate = constants.gate * _sigmoid(
            h[:, : constants.gate_width] @ w[f"{name}.ve_gate.weight"].T
        )
        v = v + gate[..., None] * table[tokens].reshape(v.shape)
    q = _norm(_rotated(q, constants.theta)) * constants.scale
    k = _norm(_rotated(k, constants.theta)) * constants.scale
    k, v = (np.repeat(part, heads // shared, axis=1) for part in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(size)
    back = np.arange(count)[:, None] - np.arange(count)[None]
    scores = np.where((back >= 0) & (back <= window), scores, -np.inf)
    chances = np.exp(scores - scores.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    mixed = np.einsum("hts,shd->thd", chances, v).reshape(count, -1)
    return np.asarray(mixed @ w[f"{name}.c_proj.weight"].T)


def _rotated(x: Array, theta: float) -> Array:
    """[n, heads, size] turned by the angles of their positions, the other way round."""
    half = x.shape[-1] // 2
    angles = np.outer(np.arange(len(x)), theta ** -(np.arange(half) / half))[:, None]
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos + second * sin, second * cos - first * sin], -1)


def _norm(x: Array) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def random_weights(era: str, config: Mapping[str, Any], seed: int = 0) -> dict[str, Array]:
    """Weights of an era with what nanochat starts at zero drawn too, as nanochat names them.

    Returns:
        Float32 arrays; the vocabulary padded to a multiple of 64 where it is.
    """
    constants, rng = ERAS[era], np.random.default_rng(seed)
    width, heads = config["n_embd"], config["n_head"]
    kept = config["n_kv_head"] * width // heads
    padded = -(-config["vocab_size"] // 64) * 64
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (padded, width),
        "lm_head.weight": (padded, width),
    }
    for layer in range(config["n_layer"]):
        name = f"transformer.h.{layer}"
        shapes |= {
            f"{name}.attn.c_q.weight": (width, width),
            f"{name}.attn.c_k.weight": (kept, width),
            f"{name}.attn.c_v.weight": (kept, width),
            f"{name}.attn.c_proj.weight": (width, width),
            f"{name}.mlp.c_fc.weight": (4 * width, width),
            f"{name}.mlp.c_proj.weight": (width, 4 * width),
        }
        if constants.gate_width and layer % 2 == (config["n_layer"] - 1) % 2:
            shapes[f"{name}.attn.ve_gate.weight"] = (config["n_kv_head"], constants.gate_width)
            shapes[f"value_embeds.{layer}.weight"] = (padded, kept)
    if constants.smear:
        shapes["smear_gate.weight"] = (1, 24)
    made = {name: rng.normal(0, shape[-1] ** -0.5, shape) for name, shape in shapes.items()}
    made["transformer.wte.weight"] *= width**0.5
    if constants.lambdas:
        made["resid_lambdas"] = rng.uniform(0.8, 1.2, config["n_layer"])
        made["x0_lambdas"] = rng.uniform(0.05, 0.4, config["n_layer"])
    if constants.smear:
        made["smear_lambda"] = np.array([0.7])
    if constants.backout:
        made["backout_lambda"] = np.array([0.3])
    return {name: value.astype(np.float32) for name, value in made.items()}  # type: ignore[misc]
