"""Finds mlx-lm's architecture for a model type, without mlx-lm's start-up cost.

Owns the table of model types and the light import. Knows nothing of weights or
of what a config's values mean.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from configs.errors import ArchitectureError

# As in mlx_lm.utils, which can't be imported here: it pulls in transformers.
# tests/unit/test_mlx_lm_models.py holds both tables equal.
REMAPPED_TYPES = {
    "mistral": "llama",
    "llava": "mistral3",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "joyai_llm_flash": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "qwen2_5_vl": "qwen2_vl",
    "minimax_m2": "minimax",
    "iquestcoder": "llama",
    "xverse": "llama",
    "gemma4_unified": "gemma4",
    "deepseek_v41_text": "deepseek_v41",
}
# Architectures that mlx-lm lacks, in modules of ours that follow its conventions.
OWN_MODULES = {"nanochat_2026": "checkpoint.architecture.nanochat_model"}
REMAPPED_ARCHITECTURES = {("bailing_hybrid", "BailingMoeV3ForCausalLM"): "bailing_moe_v3"}


class _DeferredPackage(ModuleType):
    """`mlx_lm` with its `__init__` put off until one of its names is asked for.

    The `__init__` imports transformers (over a second); the architectures and
    caches need none of it.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        spec = self.__spec__
        assert spec is not None and spec.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(self)
        return getattr(self, name)


def defer_mlx_lm_init() -> None:
    """Let `mlx_lm.models.*` be imported without running `mlx_lm/__init__.py`."""
    if "mlx_lm" in sys.modules:
        return
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or spec.submodule_search_locations is None:
        raise ArchitectureError("mlx-lm", "is not installed", "pip install mlx-lm")
    package = _DeferredPackage("mlx_lm")
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations)
    package.__file__ = spec.origin
    package.__package__ = "mlx_lm"
    package.__loader__ = spec.loader
    sys.modules["mlx_lm"] = package


@dataclass(frozen=True)
class ArchitectureClasses:
    """mlx-lm's two classes for one architecture, and the module's name."""

    name: str
    model: type[Any]
    args: type[Any]


@cache
def model_types() -> frozenset[str]:
    """Every model type that can be asked for, remapped names included."""
    defer_mlx_lm_init()
    spec = importlib.util.find_spec("mlx_lm.models")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = next(iter(spec.submodule_search_locations))
    found = set()
    for module in pkgutil.iter_modules([folder]):
        text = (Path(folder) / f"{module.name}.py").read_text("utf-8")
        if "\nclass Model(" in text and "class ModelArgs" in text:
            found.add(module.name)
    return frozenset(found | REMAPPED_TYPES.keys() | OWN_MODULES.keys())


def module_name(model_type: str, architectures: tuple[str, ...] = ()) -> str:
    """The mlx-lm module for a model type.

    Raises:
        ArchitectureError: mlx-lm has none; the nearest names are listed. Nothing
            is imported for a name that is not in `model_types()`.
    """
    for architecture in architectures:
        remapped = REMAPPED_ARCHITECTURES.get((model_type, architecture))
        if remapped is not None:
            return remapped
    if model_type not in model_types():
        near = difflib.get_close_matches(model_type, sorted(model_types()), n=3, cutoff=0.5)
        hint = f"the nearest supported are {', '.join(near)}" if near else ""
        raise ArchitectureError(
            "config.json", f"model_type {model_type!r} is not one mlx-lm has", hint
        )
    return REMAPPED_TYPES.get(model_type, model_type)


def load_classes(model_type: str, architectures: tuple[str, ...] = ()) -> ArchitectureClasses:
    """Import the architecture for a model type.

    Raises:
        ArchitectureError: unknown, or its module can't be imported here.
    """
    name = module_name(model_type, architectures)
    defer_mlx_lm_init()
    try:
        module = importlib.import_module(OWN_MODULES.get(name, f"mlx_lm.models.{name}"))
    except (ImportError, SystemExit) as error:
        # Some modules need a package of their own; one ends the process when it is missing.
        raise ArchitectureError(
            "config.json",
            f"mlx-lm can't import its architecture {name!r} ({error})",
            "install what it asks for, or another version of mlx-lm",
        ) from error
    return ArchitectureClasses(name, module.Model, module.ModelArgs)
