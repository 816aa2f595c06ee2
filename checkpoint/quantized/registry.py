"""Which format a checkpoint is quantized in, and its tensors as if it were not.

Owns the table of formats and the refusal of all others by name. The formats themselves
have a module each; what becomes of the plain weights is the architecture room's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx

from checkpoint.architecture.kept import Decoded, kept
from checkpoint.architecture.packed import config_dtype
from checkpoint.architecture.recipes import Copy, Recipe, walk
from checkpoint.architecture.trace import mlx_dtype
from checkpoint.dtypes import DTYPES
from checkpoint.gguf_files import tensors as gguf
from checkpoint.json_file import quoted
from checkpoint.quantized import awq, bnb, compressed, fp4, fp8, gptq
from checkpoint.quantized.format import Bring, Decoding, Source, unreadable
from checkpoint.tensors import Catalog, TensorRef
from configs.errors import ArchitectureError, SourceError

FORMATS: Mapping[str, Callable[[Source], Decoding]] = {
    "awq": awq.decode,
    "bitsandbytes": bnb.decode,
    "compressed-tensors": compressed.decode,
    "fbgemm_fp8": fp8.decode,
    "fp8": fp8.decode,
    "gguf": gguf.decode,
    "gptq": gptq.decode,
    "modelopt": fp4.decode_modelopt,
    "mxfp4": fp4.decode_mxfp4,
}
"""By `quant_method`."""

_KEYS = ("quantization_config", "compression_config")
_SETTINGS = "copy what its quantize_config.json says to config.json, as quantization_config"
_SIGNS = {".qweight": "GPTQ or AWQ", ".weight_packed": "compressed-tensors"}


@dataclass(frozen=True)
class PlainSource:
    """A checkpoint's tensors seen plain.

    Attributes:
        config: Its config.json without a word of quantization.
        recipes: Its tensors by their plain names.
        is_empty: Whether these are biases that a quantizer's modules brought with them:
            nothing but zeros.
        dropped: Tensors that none is made from, each with the reason.
        notes: What was found, for the receipt.
    """

    config: dict[str, Any]
    recipes: dict[str, Recipe]
    is_empty: Callable[[Iterable[str]], bool] = lambda names: False
    dropped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plain_source(
    config: Mapping[str, Any], catalog: Catalog, dtype: mx.Dtype | None, bring: Bring
) -> PlainSource:
    """A Hugging Face checkpoint's tensors, those of quantized weights decoded.

    Args:
        config: config.json as read.
        catalog: The source tensors.
        dtype: What decoded weights are rounded to; the config's when None.
        bring: Called with files before any of their tensors' bytes are looked at.

    Raises:
        ArchitectureError: it is quantized in a format that can't be read.
        SourceError: its tensors don't go together.
    """
    settings = _settings(config)
    decode = _format(settings, catalog)
    if decode is None:
        return PlainSource(dict(config), _copies(catalog))
    source = Source(settings, catalog, dtype or config_dtype(config), bring)
    decoding = decode(source)
    if not decoding.weights:
        told = quoted(str(settings.get("quant_method")))
        raise unreadable(told, "none of the tensors is, so config.json is of another checkpoint")
    used = {ref.name for weight in decoding.weights.values() for ref in weight.sources()}
    _refuse_scattered(catalog[name] for name in used)
    rest = {
        name: ref
        for name, ref in catalog.items()
        if name not in used and name not in decoding.dropped
    }
    _refuse_undecoded(decoding, rest, settings)
    recipes = {**_copies(rest), **decoding.weights}
    return PlainSource(
        _without_quantization(config),
        dict(sorted(recipes.items())),
        partial(_are_zeros, source, decoding),
        decoding.dropped,
        tuple(_notes(decoding)),
    )


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in _KEYS:
            if (found := part.get(key)) is None:
                continue
            if not isinstance(found, Mapping):
                raise ArchitectureError(
                    "config.json", f"{key} is not an object", "download it again"
                )
            return found
    return {}


def _format(
    settings: Mapping[str, Any], catalog: Mapping[str, TensorRef]
) -> Callable[[Source], Decoding] | None:
    """How a checkpoint is read; None if nothing in it is quantized."""
    method = settings.get("quant_method")
    if method is None:
        for suffix, format_name in _SIGNS.items():
            if any(name.endswith(suffix) for name in catalog):
                raise ArchitectureError(
                    "config.json",
                    f"the weights are quantized with {format_name}, but it does not say how",
                    _SETTINGS,
                )
        scaled = any(DTYPES[ref.dtype].needs_scales for ref in catalog.values())
        if not scaled and not settings:
            return None
        method = "fp8" if scaled else "an unknown method"
    if not isinstance(method, str) or method not in FORMATS:
        readable = ", ".join(sorted(FORMATS))
        raise unreadable(quoted(str(method)), f"what can be read is {readable}")
    return FORMATS[method]


def _copies(tensors: Mapping[str, TensorRef]) -> dict[str, Recipe]:
    return {name: Copy(ref.shape, mlx_dtype(ref), ref) for name, ref in tensors.items()}


def _without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in config.items() if key not in _KEYS}
    if isinstance(text := plain.get("text_config"), Mapping):
        plain["text_config"] = {key: value for key, value in text.items() if key not in _KEYS}
    return plain


def _refuse_scattered(refs: Iterable[TensorRef]) -> None:
    for ref in refs:
        if ref.axes is not None:
            raise SourceError(
                quoted(ref.name),
                "is a part of a quantized weight, and its bytes are not in order",
                "save the checkpoint again as safetensors",
            )


def _refuse_undecoded(
    decoding: Decoding, rest: Mapping[str, TensorRef], settings: Mapping[str, Any]
) -> None:
    """Nothing may be taken for a plain tensor that is a part of a quantized one."""
    for name, ref in rest.items():
        if DTYPES[ref.dtype].needs_scales or name in decoding.weights:
            raise SourceError(
                quoted(name),
                f"is {ref.dtype} {list(ref.shape)}, and belongs to no weight that was found "
                f"({quoted(str(settings.get('quant_method', 'fp8')))})",
                "take the model's 16-bit checkpoint",
            )


def _are_zeros(source: Source, decoding: Decoding, names: Iterable[str]) -> bool:
    for name in names:
        module, _, leaf = name.rpartition(".")
        if leaf != "bias" or f"{module}.weight" not in decoding.weights:
            return False
        if any(source.bytes_of(source.tensors[name])):
            return False
    return True


def _notes(decoding: Decoding) -> list[str]:
    forms: Counter[tuple[str, str]] = Counter()
    for weight in decoding.weights.values():
        told = next((node.told for node in walk(weight) if isinstance(node, Decoded)), None)
        if told is not None:
            forms[told, _fate(weight)] += 1
    return [f"{count} weights are {told}: {fate}" for (told, fate), count in forms.most_common()]


def _fate(weight: Recipe) -> str:
    found = kept(weight)
    if found is None:
        return "no mode of MLX has its grid"
    if found.exact:
        return f"MLX has the same numbers at {found.form}"
    return f"MLX has the same codes at {found.form}, scales and biases rounded to {_name(weight)}"


def _name(weight: Recipe) -> str:
    return str(weight.dtype).rpartition(".")[2]
