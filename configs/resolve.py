"""Which value wins, and where it came from.

    built-in default < the model's generation_config.json < TOML file < --set < explicit flag

This is pure: layers of checked settings go in, one `Resolved` comes out. It reads no file and no
command line; `configs.loader` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import cast

from configs.checks import InvalidValue
from configs.errors import ConfigError
from configs.generation_config import recommended, unhonoured
from configs.keys import KEYS, MODES
from configs.mixtures import check_apart, mixture_name, oust
from configs.schema import (
    TABLES,
    ConvertTable,
    GenerateTable,
    MemoryTable,
    ModelTable,
    TokenizerTable,
)
from configs.settings import Layer, Setting, refusal

__all__ = ["DEFAULT", "Layer", "Layers", "Resolved", "Setting"]

DEFAULT = "default"


# A layer that changes the first hides what the layers below say of the others: the revision of one
# model means nothing for another, nor do the bits of one mode.
_DEPEND = {
    "model.source": ("model.name", "model.revision", "model.path", "model.adapter"),
    "convert.mode": ("convert.bits", "convert.group_size"),
}


@dataclass(frozen=True)
class Layers:
    """All that was said, the weakest first."""

    generation_config: Layer = field(default_factory=dict)
    toml: Layer = field(default_factory=dict)
    sets: Layer = field(default_factory=dict)
    flags: Layer = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def with_generation_config(self, mapping: Mapping[str, object], path: Path) -> Layers:
        """The same with what the model's own file recommends.

        Its keys that change no answer here are passed over; so is null, which says "not set".
        Those that would change it, and can't be honoured, become a warning.

        Args:
            mapping: The parsed generation_config.json.
            path: That file, for messages.

        Raises:
            ModelConfigError: A value that the key can't take.
        """
        lost = unhonoured(mapping)
        warnings = [f"{path}: {', '.join(lost)} can't be honoured; it is left out"] if lost else []
        return replace(
            self,
            generation_config=recommended(mapping, path),
            warnings=(*self.warnings, *warnings),
        )

    def resolve(self) -> Resolved:
        """The tables, every value from the strongest layer that has it.

        Raises:
            ConfigError: Values that don't go together, at the origin of the one at fault.
        """
        chosen: dict[str, Setting] = {}
        for layer in (self.generation_config, self.toml, self.sets, self.flags):
            for key, dependents in _DEPEND.items():
                if key in layer and key in chosen and layer[key].value != chosen[key].value:
                    for dependent in dependents:
                        chosen.pop(dependent, None)
            oust(chosen, layer)
            chosen.update(layer)
        if (fault := check_apart(chosen)) is not None:
            raise refusal(fault[1].origin, ("convert", fault[0]), fault[2])
        _own_context(chosen, self.generation_config)
        mode = MODES[cast(str, chosen["convert.mode"].value)] if "convert.mode" in chosen else None
        if mode is not None:
            chosen.setdefault("convert.bits", Setting(mode.bits[0], DEFAULT))
            chosen.setdefault("convert.group_size", Setting(mode.group_sizes[0], DEFAULT))
        tables = {name: _table(name, chosen) for name in TABLES}
        origins = {key: chosen[key].origin if key in chosen else DEFAULT for key in KEYS}
        return Resolved(**tables, origins=origins, warnings=self.warnings)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Resolved:
    """One model, fully described, and where each value came from."""

    model: ModelTable
    convert: ConvertTable
    tokenizer: TokenizerTable
    generate: GenerateTable
    memory: MemoryTable
    origins: Mapping[str, str] = field(repr=False)
    warnings: tuple[str, ...] = ()

    def origin(self, key: str) -> str:
        """Where a value came from: "default", "my.toml:12", "--set generate.seed", "--seed"."""
        return self.origins[key]

    def given(self, key: str) -> bool:
        """Whether anybody gave the value, so that it is no built-in default."""
        return self.origins[key] != DEFAULT

    def default_folder(self, dtype: str) -> Path:
        """The result's place when no path is given.

        That is `mlx_models/<name>-<bits>bit`, `-<mode>` for a mode that has but one number of
        bits, `-4.5bpw`, `-4GB` or a recipe's name for mixed bits, `-hf` for a folder in Hugging
        Face's layout, and else `-<dtype>`.

        Args:
            dtype: Of the weights, if they are not quantized.

        Raises:
            ConfigError: Nothing says what the model is called.
        """
        name = self.model.name
        if name is None and self.model.source is not None:
            name = PurePosixPath(self.model.source).name
        try:
            KEYS["model.name"].check(name)
        except InvalidValue as error:
            raise ConfigError("model.name", "nothing names this model", "set it") from error
        return Path("mlx_models") / f"{name}-{self._kind() or dtype}"

    def _kind(self) -> str:
        """What the default folder is named for; empty if that is the dtype."""
        table = self.convert
        if table.dequantize:
            return "hf"
        if table.is_mixed:
            return mixture_name(table)
        if table.quantize:
            return f"{table.bits}bit" if table.mode == "affine" else table.mode
        return ""

    def show(self) -> str:
        """Every value and its origin, as TOML that can be read again."""
        from configs.show import show

        return show(self)


def _own_context(chosen: dict[str, Setting], recommended: Layer) -> None:
    """The window that a model's penalty is meant with is not that of another penalty."""
    penalty, context = "generate.repetition_penalty", "generate.repetition_context"
    if penalty not in recommended or chosen[penalty] is recommended[penalty]:
        return
    if chosen[context] is recommended[context]:
        del chosen[context]


def _table(name: str, chosen: Mapping[str, Setting]) -> object:
    table = TABLES[name]
    given = {key: chosen[f"{name}.{key}"] for key in table.checks if f"{name}.{key}" in chosen}
    try:
        return table(**{key: setting.value for key, setting in given.items()})
    except InvalidValue as error:
        key, *inner = error.path
        error.path = tuple(inner)
        origin = given[str(key)].origin if key in given else DEFAULT
        raise refusal(origin, (name, key), error) from error
