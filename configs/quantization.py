"""How a checkpoint is quantized: the modes, `[convert]` and its rules for single modules.

It knows which bits and group sizes go together. It does not know how a tensor is quantized, nor
which modules a model has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from configs.checks import Check, InvalidValue, Table, choice, nearest, shown, size, switch, text


class Mode(NamedTuple):
    """What a quantization mode allows; the first of each is its default."""

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "affine": Mode((4, 2, 3, 5, 6, 8), (64, 32, 128)),
        "mxfp4": Mode((4,), (32,)),
        "nvfp4": Mode((4,), (16,)),
        "mxfp8": Mode((8,), (32,)),
    }
)

_BITS = choice(2, 3, 4, 5, 6, 8)
_GROUP_SIZE = choice(16, 32, 64, 128)
_MODE = choice(*MODES)


@dataclass(frozen=True)
class LayerRule(Table):
    """`[[convert.layers]]`: what is different for some modules.

    Args:
        pattern: A glob on whole module paths, such as `model.layers.*.mlp.down_proj`; `*` also
            matches dots. The first rule that matches a module decides.
        bits: Bits per weight; that of `[convert]` when not set.
        group_size: Weights that share a scale; that of `[convert]` when not set.
        mode: Quantization mode; that of `[convert]` when not set. Bits and group size that are not
            set are this mode's defaults, when it is another than that of `[convert]`.
        keep: Leave these modules unquantized.
    """

    pattern: str
    bits: int | None = None
    group_size: int | None = None
    mode: str | None = None
    keep: bool = False

    checks: ClassVar[Mapping[str, Check]] = {
        "pattern": text("a glob on module paths"),
        "bits": _BITS,
        "group_size": _GROUP_SIZE,
        "mode": _MODE,
        "keep": switch(),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("bits", "group_size", "mode") if getattr(self, name) is not None]
        if self.keep and given:
            raise InvalidValue(
                "keep = true leaves nothing to quantize", f"drop it, or {given[0]}", (given[0],)
            )
        if not self.keep and not given:
            raise InvalidValue("the rule says nothing", "add bits, group_size, mode or keep")


class LayerChoice(NamedTuple):
    """What a rule comes to for a module: whether it is kept, else how it is quantized."""

    keep: bool
    bits: int
    group_size: int
    mode: str


def _layer_rules(value: object) -> tuple[LayerRule, ...] | None:
    if not isinstance(value, (list, tuple)):
        return None
    return tuple(_layer_rule(index, rule) for index, rule in enumerate(value))


def _layer_rule(index: int, value: object) -> LayerRule:
    if isinstance(value, LayerRule):
        return value
    known = [field.name for field in fields(LayerRule)]
    if not isinstance(value, dict):
        raise InvalidValue(
            f"{shown(value)} is not a rule", f"it takes {', '.join(known)}", (index,)
        )
    for key in value:
        if key not in known:
            raise InvalidValue("unknown key", nearest(key, known), (index, key))
    if "pattern" not in value:
        raise InvalidValue("the rule has no pattern", "add the module paths it is for", (index,))
    try:
        return LayerRule(**value)
    except InvalidValue as error:
        error.path = (index, *error.path)
        raise


@dataclass(frozen=True)
class ConvertTable(Table):
    """`[convert]`: how the checkpoint becomes an MLX folder.

    Args:
        quantize: Quantize the weights.
        bits: Bits per weight. Each mode has its own default: affine 4, mxfp4 4, nvfp4 4, mxfp8 8.
        group_size: Weights that share a scale: affine 64, mxfp4 32, nvfp4 16, mxfp8 32.
        mode: Quantization mode.
        method: How codes and scales are found; `rtn` rounds to nearest, as mlx-lm does.
        dtype: Of the weights that are not quantized; the source's own when not set.
        max_shard_size: Largest size of one weight file, in bytes; text such as "5GB" is read.
        layers: Rules for some modules; the first that matches decides.
    """

    quantize: bool = False
    bits: int = MODES["affine"].bits[0]
    group_size: int = MODES["affine"].group_sizes[0]
    mode: str = "affine"
    method: str = "rtn"
    dtype: str | None = None
    max_shard_size: int = 5 * 10**9
    layers: tuple[LayerRule, ...] = ()

    checks: ClassVar[Mapping[str, Check]] = {
        "quantize": switch(),
        "bits": _BITS,
        "group_size": _GROUP_SIZE,
        "mode": _MODE,
        "method": choice("rtn"),
        "dtype": choice("float16", "bfloat16", "float32"),
        "max_shard_size": size(),
        "layers": Check("a list of rules, [[convert.layers]] in a file", "RULES", _layer_rules),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_mode(self.mode, self.bits, self.group_size)
        for index, rule in enumerate(self.layers):
            chosen = self._choice(rule)
            try:
                _check_mode(chosen.mode, chosen.bits, chosen.group_size)
            except InvalidValue as error:
                error.path = ("layers", index, *error.path)
                raise

    def rule_for(self, module: str) -> LayerChoice | None:
        """What the rules say of a module path; None when no rule matches it."""
        from fnmatch import fnmatchcase

        matching = (rule for rule in self.layers if fnmatchcase(module, rule.pattern))
        rule = next(matching, None)
        return None if rule is None else self._choice(rule)

    def _choice(self, rule: LayerRule) -> LayerChoice:
        mode = rule.mode or self.mode
        bits, group_size = self.bits, self.group_size
        if mode != self.mode:
            bits, group_size = MODES[mode].bits[0], MODES[mode].group_sizes[0]
        return LayerChoice(rule.keep, rule.bits or bits, rule.group_size or group_size, mode)


def _check_mode(mode: str, bits: int, group_size: int) -> None:
    for name, value, allowed in (
        ("bits", bits, MODES[mode].bits),
        ("group_size", group_size, MODES[mode].group_sizes),
    ):
        if value not in allowed:
            takes = ", ".join(str(number) for number in sorted(allowed))
            raise InvalidValue(
                f"{value} does not go with mode {mode}", f"{mode} takes {takes}", (name,)
            )
