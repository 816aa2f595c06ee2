"""What `--sweep` names: quantizations by method and size, and what goes beside them.

    rtn:4           a method at so many bits
    search:3/32     in groups of 32
    search:mxfp4    in a mode
    search@4.5bpw   mixed bits that come to so many bits per weight
    calibrated@4GB  mixed bits that come to files of this size
    rtn@mixed_3_6   mixed bits by a recipe

Owns this notation and turns each into options. Imports neither mlx nor a model.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from configs.checks import InvalidValue
from configs.errors import UsageError
from configs.keys import KEYS, MODES
from configs.mixtures import MIXTURES, RECIPES
from configs.resolve import Layers, Resolved
from configs.settings import Setting

FLAG = "--sweep"
_BITS = (2, 3, 4, 5, 6, 8)
_TARGETS = ("3.5bpw", "4.5bpw")
DEFAULT = ",".join(
    [f"{method}:{bits}" for bits in _BITS for method in ("rtn", "search")]
    + [f"search@{target}" for target in _TARGETS]
)
_EXAMPLE = "write them like rtn:4,search:3/32,search:mxfp4,search@4.5bpw"
_CALIBRATE = "convert.calibrate"
_OF_A_SPEC = ("quantize", "method", "calibrate")
_ALLOWED = (
    "model.source",
    "model.revision",
    "model.step",
    "model.path",
    "convert.quantize",
    _CALIBRATE,
    "convert.dtype",
    "tokenizer.trust_remote_code",
)
_REFUSED = (
    "force",
    "dry_run",
    "consume_source",
    "fuse_adapter",
    "prove",
    "quality",
    "reference",
    "upload_repo",
    "private",
    "verify",
    "diff",
    "show_config",
)


@dataclass(frozen=True)
class Spec:
    """One quantization of a sweep.

    Attributes:
        name: As it was given.
        settings: Options that it stands for, by key of `[convert]`.
    """

    name: str
    settings: dict[str, Any]

    @property
    def method(self) -> str:
        """How codes and scales are found."""
        return str(self.settings["method"])


def read_specs(given: str) -> tuple[Spec, ...]:
    """The quantizations that a list of names stands for; the usual ones if it is empty.

    Raises:
        UsageError: naming the one that can't be read.
    """
    names = [name.strip() for name in (given or DEFAULT).split(",")]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(FLAG, f"{name} is named twice", "leave one of them out")
    return tuple(Spec(name, _settings(name)) for name in names)


def _settings(name: str) -> dict[str, Any]:
    found = re.fullmatch(r"(\w+)([:@])([\w./]+)", name)
    if found is None:
        raise UsageError(FLAG, f"{name or 'nothing'} is no quantization", _EXAMPLE)
    method, sign, rest = found.groups()
    settings = {"quantize": True, "method": method}
    settings |= _mixture(rest) if sign == "@" else _form(name, rest)
    for key, value in settings.items():
        try:
            settings[key] = KEYS[f"convert.{key}"].check(value)
        except InvalidValue as error:
            mend = error.mend if key == "method" else _EXAMPLE
            raise UsageError(FLAG, f"{name}: {key}: {error.what}", mend) from error
    return settings


def _form(name: str, rest: str) -> dict[str, Any]:
    if rest in MODES:
        return {"mode": rest}
    bits, _, group_size = rest.partition("/")
    if not bits.isdigit() or (group_size and not group_size.isdigit()) or rest.endswith("/"):
        raise UsageError(FLAG, f"{name} is no quantization", _EXAMPLE)
    form: dict[str, Any] = {"mode": "affine", "bits": int(bits)}
    return form | ({"group_size": int(group_size)} if group_size else {})


def _mixture(rest: str) -> dict[str, Any]:
    if rest in RECIPES:
        return {"recipe": rest}
    number = rest.removesuffix("bpw")
    if number != rest and re.fullmatch(r"\d+(\.\d+)?", number):
        return {"target_bpw": float(number)}
    return {"target_size": rest}


def check_beside(args: argparse.Namespace, layers: Layers, specs: tuple[Spec, ...]) -> None:
    """Refuse flags that a sweep can't honour.

    Raises:
        UsageError: naming one of them.
    """
    given = [f"--{name.replace('_', '-')}" for name in _REFUSED if getattr(args, name)]
    given += [setting.origin for key, setting in layers.flags.items() if key not in _ALLOWED]
    if given:
        of_a_form = given[0].removeprefix("--").replace("-", "_") in (
            *("bits", "group_size", "mode", "method"),
            *MIXTURES,
        )
        mend = f"say it in {FLAG}: {_EXAMPLE}" if of_a_form else "leave it out"
        raise UsageError(given[0], f"means nothing with {FLAG}", mend)
    if _CALIBRATE in layers.flags and not any(spec.method == "calibrated" for spec in specs):
        origin = layers.flags[_CALIBRATE].origin
        raise UsageError(origin, f"{FLAG} names no calibrated quantization", "name one")


def base_of(layers: Layers) -> Resolved:
    """The options apart from any quantization.

    Raises:
        ConfigError: values that don't go together.
        UsageError: a configuration asks for the contrary of quantizing.
    """
    resolved = _replaced(layers, lambda name: name not in _OF_A_SPEC, {}).resolve()
    if resolved.convert.dequantize:
        origin = resolved.origin("convert.dequantize")
        raise UsageError(origin, f"means nothing with {FLAG}", "leave it out")
    return resolved


def options_of(layers: Layers, spec: Spec) -> Resolved:
    """The options that a quantization is made with.

    Raises:
        ConfigError: values that don't go together.
    """
    origin = f"{FLAG} {spec.name}"
    own = {f"convert.{key}": Setting(value, origin) for key, value in spec.settings.items()}
    calibrated = spec.method == "calibrated"
    return _replaced(layers, lambda name: calibrated or name != "calibrate", own).resolve()


def _replaced(layers: Layers, keep: Callable[[str], bool], own: dict[str, Setting]) -> Layers:
    """The same without some keys of `[convert]`, and with others on top."""

    def kept(layer: Any) -> dict[str, Setting]:
        return {
            key: value
            for key, value in layer.items()
            if not key.startswith("convert.") or keep(key.removeprefix("convert."))
        }

    flags = kept(layers.flags) | own
    return replace(layers, toml=kept(layers.toml), sets=kept(layers.sets), flags=flags)
