"""Which tensors of an MLX folder make one weight together, and how it is packed.

Owns the reading of config.json's `quantization`, and what it demands of a weight, its
scales and its biases. Reads no tensor's bytes and imports no MLX.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.dtypes import DTYPES
from checkpoint.folder import shown
from checkpoint.json_file import json_type, json_value, quoted
from checkpoint.tensors import TensorRef
from configs.quantization import MODES

# Besides the bits of `MODES`, which are those that `convert` writes.
_MORE_BITS = {"affine": (1,)}
_WORD_BITS = 32


@dataclass(frozen=True)
class Quantization:
    """How a weight is packed.

    Attributes:
        bits: Bits of a code.
        group_size: Consecutive weights of a row that share a scale.
        mode: `affine`, `mxfp4`, `nvfp4` or `mxfp8`.
    """

    bits: int
    group_size: int
    mode: str

    def __str__(self) -> str:
        return f"{self.bits} bits, groups of {self.group_size}, {self.mode}"

    def as_config(self) -> dict[str, Any]:
        """As config.json's `quantization` holds it."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


@dataclass(frozen=True)
class Forms:
    """What `quantization` says, by module.

    Attributes:
        default: For every packed module that has no entry of its own.
        own: For single modules; None for one that is not packed.
    """

    default: Quantization
    own: Mapping[str, Quantization | None]

    def of(self, module: str) -> Quantization | None:
        """How a module that has scales is packed; None if the config says it is not."""
        return self.own.get(module, self.default)


@dataclass(frozen=True)
class PackedWeight:
    """A weight in its parts.

    Attributes:
        module: The module's path; the parameter is its `weight`.
        form: How it is packed.
        weight: Codes, [..., rows, columns * bits / 32] uint32.
        scales: [..., rows, columns / group_size].
        biases: As `scales`; for `affine` only.
        global_scale: [...] float32; for some `nvfp4` only.
    """

    module: str
    form: Quantization
    weight: TensorRef
    scales: TensorRef
    biases: TensorRef | None
    global_scale: TensorRef | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape before packing."""
        *rows, words = self.weight.shape
        return (*rows, words * _WORD_BITS // self.form.bits)

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        """All its tensors."""
        parts = (self.weight, self.scales, self.biases, self.global_scale)
        return tuple(part for part in parts if part is not None)


@dataclass(frozen=True)
class Packing:
    """A folder's tensors, those of packed weights together.

    Attributes:
        forms: What the config says; None if it says nothing that can be used.
        packed: The packed weights by module.
        plain: All other tensors by name, those of faulty modules among them.
        faults: What is wrong, as (where, what); a module that is at fault is not packed.
        faulty: The modules at fault.
        unused: Modules that `quantization` names and the folder has not.
    """

    forms: Forms | None
    packed: Mapping[str, PackedWeight]
    plain: Mapping[str, TensorRef]
    faults: tuple[tuple[str, str], ...] = ()
    faulty: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()


def read_packing(
    config: Mapping[str, Any], tensors: Mapping[str, TensorRef], where: Path
) -> Packing:
    """Find the packed weights of an MLX folder and hold each to what the config says.

    Args:
        config: config.json.
        tensors: The folder's tensors by name.
        where: config.json's path, to name in faults.
    """
    modules = {
        name.removesuffix(".scales"): ref
        for name, ref in tensors.items()
        if name.endswith(".scales")
    }
    given = config.get("quantization")
    if given is None:
        return _not_told(modules, tensors, where)
    forms, faults = _forms(given, str(where))
    if forms is None:
        return Packing(None, {}, tensors, tuple(faults), frozenset(modules))
    found: dict[str, PackedWeight] = {}
    faulty: set[str] = set()
    for module, scales in modules.items():
        weight = tensors.get(f"{module}.weight")
        form = forms.of(module)
        if weight is None:
            fault = "has scales, but no weight"
        elif form is None:
            fault = "has scales, but config.json says that it is not quantized"
        else:
            biases, factor = (
                tensors.get(f"{module}.{leaf}") for leaf in ("biases", "global_scale")
            )
            packed = PackedWeight(module, form, weight, scales, biases, factor)
            fault = _misfit(packed)
            if not fault:
                found[module] = packed
                continue
        faults.append((quoted(module), fault))
        faulty.add(module)
    for module, fault in _strays(forms, modules, tensors):
        faults.append((quoted(module), fault))
        faulty.add(module)
    used = {ref.name for packed in found.values() for ref in packed.parts}
    plain = {name: ref for name, ref in tensors.items() if name not in used}
    unused = tuple(
        path for path, own in forms.own.items() if own and f"{path}.weight" not in tensors
    )
    return Packing(forms, found, plain, tuple(faults), frozenset(faulty), unused)


def _not_told(
    modules: Mapping[str, TensorRef], tensors: Mapping[str, TensorRef], where: Path
) -> Packing:
    packed = [
        module
        for module in modules
        if f"{module}.weight" in tensors and tensors[f"{module}.weight"].dtype == "U32"
    ]
    if not packed:
        return Packing(None, {}, tensors)
    what = f"has no quantization, but {len(packed)} modules are packed ({shown(packed)})"
    return Packing(None, {}, tensors, ((str(where), what),), frozenset(packed))


def _forms(given: object, where: str) -> tuple[Forms | None, list[tuple[str, str]]]:
    if not isinstance(given, Mapping):
        return None, [(where, f"quantization is {json_type(given)}, not an object")]
    default = _form(given)
    if isinstance(default, str):
        return None, [(where, f"quantization: {default}")]
    own: dict[str, Quantization | None] = {}
    faults = []
    for path, entry in given.items():
        if entry is False:
            own[path] = None
        elif entry is True:
            own[path] = default
        elif isinstance(entry, Mapping):
            form = _form(entry)
            if isinstance(form, str):
                faults.append((where, f"quantization of {quoted(path)}: {form}"))
            else:
                own[path] = form
    return Forms(default, own), faults


def _form(given: Mapping[str, Any]) -> Quantization | str:
    """One form; where it is none, what is wrong with it."""
    mode = given.get("mode") or "affine"
    if not isinstance(mode, str) or mode not in MODES:
        return f"mode {json_value(mode)} is none of {', '.join(MODES)}"
    allowed = {
        "bits": (*MODES[mode].bits, *_MORE_BITS.get(mode, ())),
        "group_size": MODES[mode].group_sizes,
    }
    values = {}
    for key, choices in allowed.items():
        value = given.get(key)
        values[key] = choices[0] if value is None else value
        if type(values[key]) is not int or values[key] not in choices:
            takes = ", ".join(map(str, sorted(choices)))
            return f"{key} {json_value(value)} does not go with mode {mode}, which takes {takes}"
    return Quantization(values["bits"], values["group_size"], mode)


def _misfit(packed: PackedWeight) -> str:
    """How a packed weight's parts go against its form; empty if they don't."""
    form, weight, scales = packed.form, packed.weight, packed.scales
    told = str(form)
    if weight.dtype != "U32" or len(weight.shape) < 2:
        return f"has scales, but its weight is {weight.dtype} {list(weight.shape)}, not packed"
    bits = weight.shape[-1] * _WORD_BITS
    if bits % form.bits or bits // form.bits % form.group_size:
        return f"has a weight {list(weight.shape)}, which can't be {told}"
    wanted = (*weight.shape[:-1], bits // form.bits // form.group_size)
    if scales.shape != wanted:
        return f"has scales {list(scales.shape)} where {told} takes {list(wanted)}"
    is_affine = form.mode == "affine"
    if DTYPES[scales.dtype].is_float != is_affine or not (is_affine or scales.dtype == "U8"):
        return f"has scales of dtype {scales.dtype}, which mode {form.mode} does not"
    if not is_affine and packed.biases is not None:
        return f"has biases, which mode {form.mode} has not"
    if is_affine and packed.biases is None:
        return "has scales, but no biases"
    factor = packed.global_scale
    if factor is not None and (form.mode, factor.shape) != ("nvfp4", weight.shape[:-2]):
        return f"has a global_scale {list(factor.shape)}, which does not go with {told}"
    biases = packed.biases
    if biases is not None and (biases.dtype, biases.shape) != (scales.dtype, scales.shape):
        told = f"{biases.dtype} {list(biases.shape)}"
        return f"has biases {told} beside scales {scales.dtype} {list(scales.shape)}"
    return ""


def _strays(
    forms: Forms, modules: Mapping[str, TensorRef], tensors: Mapping[str, TensorRef]
) -> Iterator[tuple[str, str]]:
    """Modules without scales that have, or should have, what belongs to some."""
    for name, ref in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module in modules:
            continue
        if leaf == "biases":
            yield module, "has biases, but no scales"
        elif leaf == "weight" and forms.own.get(module) is not None:
            yield module, "has no scales, but config.json says that it is quantized"
        elif leaf == "weight" and ref.dtype == "U32":
            yield module, "has a packed weight, but no scales"
