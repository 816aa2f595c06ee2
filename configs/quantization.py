"""How a checkpoint is quantized: the modes, `[convert]` and its rules for single modules.

It knows which bits and group sizes go together. It does not know how a tensor is quantized, nor
which modules a model has.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

from configs.checks import InvalidValue, nearest, shown, switch, text
from configs.keys import BITS, GROUP_SIZE, MODE, MODES
from configs.mixtures import TARGETS
from configs.table import DEFAULTS, Table, checks_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MODES", "ConvertTable", "LayerChoice", "LayerRule", "layer_rules"]

_RULE_CHECKS = {
    "pattern": text("a glob on module paths"),
    "bits": BITS,
    "group_size": GROUP_SIZE,
    "mode": MODE,
    "keep": switch(),
}


@dataclass(frozen=True)
class LayerRule(Table, checks=_RULE_CHECKS):
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


def layer_rules(value: object) -> tuple[LayerRule, ...] | None:
    """The rules of a list of tables, as TOML gives them; None when it is no list.

    Raises:
        InvalidValue: With the rule's index as the first part of its path.
    """
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
class ConvertTable(Table, checks=checks_of("convert")):
    """`[convert]`: how the checkpoint becomes an MLX folder.

    Args:
        quantize: Quantize the weights.
        dequantize: Make a plain folder in Hugging Face's layout of an MLX folder.
        bits: Bits per weight. Each mode has its own default: affine 4, mxfp4 4, nvfp4 4, mxfp8 8.
        group_size: Weights that share a scale: affine 64, mxfp4 32, nvfp4 16, mxfp8 32.
        mode: Quantization mode.
        method: How codes and scales are found; `search` looks for those that lose least, `rtn`
            rounds to nearest, as mlx-lm does, `calibrated` weighs errors by what a text makes
            each layer see.
        calibrate: The text for that, a file in UTF-8, or "self" for one that the model writes. With
            a target it also says what each layer counts, which the target alone takes from the
            weights.
        target_bpw: Bits per weight, all tensors counted, that every layer's own bits, group size
            and mode are chosen to come to at most, so that least is lost.
        target_size: The same for the bytes of all weight files; text such as "4GB" is read.
        fit: The same for a machine with this much memory, beside the KV cache of `memory.context`
            tokens.
        recipe: A known mixture of bits, which decides by the layers' names and places.
        dtype: Of the weights that are not quantized; the source's own when not set.
        max_shard_size: Largest size of one weight file, in bytes; text such as "5GB" is read.
        softcap: What a nanochat model caps its logits at, where its files can't tell.
        window_pattern: Which layers of a nanochat model see far and which near, such as "SSSL",
            where its files do not say.
        layers: Rules for some modules; the first that matches decides.
    """

    quantize: bool = DEFAULTS["convert.quantize"]
    dequantize: bool = DEFAULTS["convert.dequantize"]
    bits: int = DEFAULTS["convert.bits"]
    group_size: int = DEFAULTS["convert.group_size"]
    mode: str = DEFAULTS["convert.mode"]
    method: str = DEFAULTS["convert.method"]
    calibrate: Path | str | None = DEFAULTS["convert.calibrate"]
    target_bpw: float | None = DEFAULTS["convert.target_bpw"]
    target_size: int | None = DEFAULTS["convert.target_size"]
    fit: int | None = DEFAULTS["convert.fit"]
    recipe: str | None = DEFAULTS["convert.recipe"]
    dtype: str | None = DEFAULTS["convert.dtype"]
    max_shard_size: int = DEFAULTS["convert.max_shard_size"]
    softcap: float | None = DEFAULTS["convert.softcap"]
    window_pattern: str | None = DEFAULTS["convert.window_pattern"]
    layers: tuple[LayerRule, ...] = DEFAULTS["convert.layers"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantize and self.dequantize:
            raise InvalidValue("goes against quantize", "choose one of them", ("dequantize",))
        _check_mode(self.mode, self.bits, self.group_size)
        self._check_calibration()
        for index, rule in enumerate(self.layers):
            chosen = self._choice(rule)
            try:
                _check_mode(chosen.mode, chosen.bits, chosen.group_size)
            except InvalidValue as error:
                error.path = ("layers", index, *error.path)
                raise

    def _check_calibration(self) -> None:
        if self.method == "calibrated" and self.mode != "affine":
            raise InvalidValue(
                f"can't calibrate mode {self.mode}",
                "choose method search, or mode affine",
                ("method",),
            )
        if self.method == "calibrated" and self.calibrate is None:
            raise InvalidValue(
                "calibrated needs a text to calibrate on", "name one with calibrate", ("method",)
            )
        targeted = self.is_targeted and self.calibrate != "self"
        asked = self.method == "calibrated" or targeted
        if self.calibrate is not None and not asked:
            raise InvalidValue(
                f"means nothing with method {self.method}",
                "choose method calibrated, or name a text"
                if self.is_targeted
                else "choose method calibrated, or give a target",
                ("calibrate",),
            )

    @property
    def is_targeted(self) -> bool:
        """Whether the bits follow from a size."""
        return any(getattr(self, target) is not None for target in TARGETS)

    @property
    def is_mixed(self) -> bool:
        """Whether each layer has bits of its own."""
        return self.quantize and (self.is_targeted or self.recipe is not None)

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
