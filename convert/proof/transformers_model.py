"""transformers' model of a source, its weights in memory one block at a time.

Owns the reference: the model of transformers' own class for a config, in float32 on the
CPU, its weights read from the source's shards by transformers' own loading just before a
block runs and freed right after it. Knows nothing of MLX, of this project's other modules,
or of what is computed with it. Only classes that transformers itself ships are used, so no
code of a model folder runs.

transformers can keep weights on disk by itself (`device_map`, with accelerate), but then
writes everything that it fuses, all experts of a model, to disk once more in float32. Here
nothing is written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


class UnprovableError(Exception):
    """What transformers can't compute, in words for the user."""


def build(config: dict[str, Any]) -> Any:
    """transformers' model for a config, its parameters without memory, its buffers computed."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = config["model_type"]
    if kind not in CONFIG_MAPPING:
        raise UnprovableError(f"transformers has no model of type {kind!r}")
    held = CONFIG_MAPPING[kind](**{k: v for k, v in config.items() if k != "auto_map"})
    if type(held) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnprovableError(f"transformers has no causal language model of type {kind!r}")
    auto: Any = transformers.AutoModelForCausalLM
    with without_memory(torch):
        model = auto.from_config(
            held,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
        )
    return model.eval()


@contextlib.contextmanager
def without_memory(torch: Any) -> Iterator[None]:
    """Parameters that modules register go to the `meta` device; buffers, which are computed
    from the config alone, stay."""
    register = torch.nn.Module.register_parameter

    def registered(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None:
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = registered
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


class Blocks:
    """A model cut into blocks that are loaded and freed on their own.

    A block is an item of an outermost list of modules, such as a decoder layer, or a part
    beside such lists, such as the embeddings, the last norm or the head.

    Args:
        model: What `build` gave.
        tensors: The file of each of the source's tensors.
    """

    def __init__(self, model: Any, tensors: Mapping[str, str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.model = model
        self._files = tensors
        self._open: dict[str, Any] = {}
        self._mapping: list[Any] = list(get_model_conversion_mapping(model))
        self._freed = {
            name: _nothing(parameter)
            for name, parameter in model.named_parameters(remove_duplicate=False)
        }
        for name, parameter in self._freed.items():
            self._put(name, parameter)
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        self._twin = {name: tied.get(name, name) for name in model.state_dict()}
        self._cuts = False  # whether one tensor of the source becomes several
        self._sources = self._by_target()
        self.lists: dict[str, list[Any]] = {}
        self.blocks: dict[str, Any] = {}
        self.resident: list[str] = []
        self._cut("", model)
        missing = [name for name in self._freed if self._twin[name] not in self._sources]
        if missing and not self._cuts:
            some = ", ".join(missing[:3])
            raise UnprovableError(
                f"the source lacks {len(missing)} tensors that transformers wants ({some})"
            )

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest block in float32."""
        sizes = [sum(p.numel() for p in block.parameters()) * 4 for block in self.blocks.values()]
        return max(sizes, default=0)

    @property
    def most_layers(self) -> int:
        """Items of the longest list of modules."""
        return max(map(len, self.lists.values()), default=0)

    def _cut(self, name: str, module: Any) -> None:
        from torch.nn import ModuleList

        def child_name(child: str) -> str:
            return f"{name}.{child}" if name else child

        if isinstance(module, ModuleList):
            self.lists[name] = list(module)
            self.blocks |= {child_name(child): block for child, block in module.named_children()}
        elif any(isinstance(part, ModuleList) for part in module.modules()):
            self.resident += [child_name(own) for own, _ in module.named_parameters(recurse=False)]
            for child, part in module.named_children():
                self._cut(child_name(child), part)
        else:
            self.blocks[name] = module

    def _by_target(self) -> dict[str, list[str]]:
        """The source's tensors by the model's tensor that they go to, of twins the first."""
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )

        renamings = [each for each in self._mapping if isinstance(each, WeightRenaming)]
        converters = [each for each in self._mapping if isinstance(each, WeightConverter)]
        targets = self.model.state_dict()
        prefix = self.model.base_model_prefix
        found: dict[str, list[str]] = {}
        for source in self._files:
            name, pattern = rename_source_key(source, renamings, converters, prefix, targets)
            if name not in targets and source in targets:
                name, pattern = rename_source_key(source, [], [], prefix, targets)
            if name not in targets:
                continue
            found.setdefault(self._twin[name], []).append(source)
            cut = [each for each in converters if pattern in each.source_patterns]
            self._cuts |= any(len(each.target_patterns) > 1 for each in cut)
        return found

    def load(self, names: list[str]) -> None:
        """Read the parameters and buffers of these names, and their twins', into the model."""
        import torch
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        twins = {self._twin[name] for name in names}
        sources = {source: None for twin in twins for source in self._sources.get(twin, ())}
        told = convert_and_load_state_dict_in_model(
            model=self.model,
            state_dict={source: self._slice(source) for source in sources},
            load_config=LoadStateDictConfig(dtype=torch.float32, weight_mapping=self._mapping),
        )[0]
        if told.conversion_errors or told.mismatched_keys:
            wrong = [*told.conversion_errors, *(key for key, *_ in told.mismatched_keys)]
            raise UnprovableError(f"transformers can't load {wrong[0]} from the source")
        loaded = {
            self._twin[name]: parameter
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if self._twin[name] in twins and parameter is not self._freed[name]
        }
        for name in names:
            if name in self._freed:
                if self._twin[name] not in loaded:
                    raise UnprovableError(f"the source lacks {name}, which transformers wants")
                self._put(name, loaded[self._twin[name]])

    def free(self, names: list[str]) -> None:
        """Put the parameters of these names, and their twins, back to no memory."""
        twins = {self._twin[name] for name in names}
        for name, parameter in self._freed.items():
            if self._twin[name] in twins and name not in self.resident:
                self._put(name, parameter)

    def _put(self, name: str, parameter: Any) -> None:
        path, _, leaf = name.rpartition(".")
        self.model.get_submodule(path)._parameters[leaf] = parameter

    def _slice(self, source: str) -> Any:
        from safetensors import safe_open

        file = self._files[source]
        if file not in self._open:
            # pread: pages of a file that is mapped would count as this process's memory
            self._open[file] = safe_open(file, framework="pt", backend="pread")
        return self._open[file].get_slice(source)


def _nothing(parameter: Any) -> Any:
    """A parameter of the same shape, on the CPU as models expect, in the memory of one NaN."""
    import torch

    value = torch.full((), torch.nan, dtype=parameter.dtype).expand(parameter.shape)
    return torch.nn.Parameter(value, requires_grad=False)
