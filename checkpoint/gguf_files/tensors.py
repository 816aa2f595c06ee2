"""llama.cpp's names and layouts of tensors, brought to those that transformers saves.

Owns three changes: the names, the rows of a Llama's queries and keys (llama.cpp turns
neighbours, transformers halves), and the 1 that it adds to a Gemma's norms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import mlx.core as mx

from checkpoint.architecture.recipes import Copy, Elementwise, Recipe, Slice, Transpose
from checkpoint.architecture.reshape import Reshape
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.gguf_files.blocks import block_weight
from checkpoint.gguf_files.header import PLAIN
from checkpoint.json_file import quoted
from checkpoint.quantized.format import Decoding, Source
from checkpoint.tensors import TensorRef
from configs.errors import SourceError

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_NAME = re.compile(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)")
_PLAIN = tuple(dtype for dtype, _ in PLAIN.values())
_ROPE = "rope_freqs.weight"


def decode(source: Source) -> Decoding:
    """The tensors of a GGUF file under transformers' names.

    Raises:
        SourceError: one has a name or a shape that is not of the file's family.
    """
    family = str(source.settings.get("architecture"))
    weights: dict[str, Recipe] = {}
    dropped = {}
    for name, ref in source.tensors.items():
        if name == _ROPE:
            dropped[name] = "RoPE's factors, which config.json tells"
            continue
        for plain_name, recipe in _renamed(family, ref, source):
            weights[plain_name] = recipe
    return Decoding(weights, dropped)


def _renamed(family: str, ref: TensorRef, source: Source) -> Iterator[tuple[str, Recipe]]:
    recipe = _plain(ref, source)
    stem, _, leaf = ref.name.rpartition(".")
    if stem in _TOP:
        name = f"{_TOP[stem]}.{leaf}"
        yield name, _less_one(recipe) if _is_norm(family, stem) else recipe
        return
    found = _NAME.fullmatch(ref.name)
    names = _LAYER | _FOUR_NORMS if family in ("gemma2", "gemma3") else _LAYER
    if found is None or (found[2] not in names and found[2] not in _EXPERTS):
        raise SourceError(
            quoted(ref.name), f"is no tensor of a {family} in GGUF", "take another file"
        )
    layer, part, leaf = found.groups()
    prefix = f"model.layers.{layer}"
    if part in _EXPERTS:
        for expert in range(recipe.shape[0]):
            yield f"{prefix}.mlp.experts.{expert}.{_EXPERTS[part]}.{leaf}", _one(recipe, expert)
        return
    if family == "llama" and part in ("attn_q", "attn_k"):
        recipe = _halves(recipe, source.settings["heads" if part == "attn_q" else "kv_heads"], ref)
    if _is_norm(family, part):
        recipe = _less_one(recipe)
    yield f"{prefix}.{names[part]}.{leaf}", recipe


def _plain(ref: TensorRef, source: Source) -> Recipe:
    if ref.dtype in _PLAIN:
        return Copy(ref.shape, mlx_dtype(ref), ref)
    return block_weight(ref, source.dtype)


def _is_norm(family: str, part: str) -> bool:
    return family.startswith("gemma") and part.endswith("_norm")


def _less_one(recipe: Recipe) -> Recipe:
    return Elementwise(recipe.shape, mx.float32, (recipe,), lambda w: w.astype(mx.float32) - 1)


def _one(stack: Recipe, expert: int) -> Recipe:
    """One matrix of a stack."""
    shape = stack.shape
    start, step = (expert, *[0] * (len(shape) - 1)), (1,) * len(shape)
    cut = Slice((1, *shape[1:]), stack.dtype, stack, start, step)
    return Reshape(shape[1:], stack.dtype, cut)


def _halves(recipe: Recipe, heads: int, ref: TensorRef) -> Recipe:
    """Rows by heads: pairs side by side, as llama.cpp has them, to one half after the other."""
    rows, *rest = recipe.shape
    if type(heads) is not int or heads <= 0 or rows % (2 * heads):
        raise SourceError(quoted(ref.name), f"has {rows} rows for {heads} heads", "download again")
    pairs = (heads, rows // heads // 2, 2, *rest)
    axes = (0, 2, 1, *range(3, len(pairs)))
    parted = Reshape(pairs, recipe.dtype, recipe)
    swapped = (heads, 2, rows // heads // 2, *rest)
    return Reshape(recipe.shape, recipe.dtype, Transpose(swapped, recipe.dtype, parted, axes))
