"""The child process in which transformers computes a source, block by block.

Owns the reference: the model of transformers' own class for a config, in float32 on the
CPU, its weights read from the source's shards by transformers' own loading just before a
block runs and freed right after it. Run by its path, not imported; knows nothing of MLX or
of this project's other modules. The order arrives on stdin, the answer leaves on stdout
line by line, hidden states and logits as safetensors files in a folder. Only classes that
transformers itself ships are used, so no code of a model folder runs.

transformers can keep weights on disk by itself (`device_map`, with accelerate), but then
writes everything that it fuses, all experts of a model, to disk once more in float32. Here
nothing is written but what the layers give.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SETTINGS = {
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # the weights of a block one by one, not all at once
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "critical",
}


class UnprovableError(Exception):
    """What transformers can't compute, in words for the user."""


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    os.environ.update(SETTINGS)
    order = json.load(sys.stdin)

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        blocks = Blocks(build(order["config"]), order["tensors"])
        facts = {
            "model": type(blocks.model).__name__,
            "largest_block_bytes": blocks.largest_bytes,
            "most_layers": blocks.most_layers,
        }
        if order["folder"] is not None:
            ids = token_ids(order, blocks.model.config)
            facts |= compute(blocks, ids, Path(order["folder"]), answer)
        answer(done=facts, peak_memory_bytes=peak_bytes())
    except UnprovableError as error:
        answer(unprovable=str(error))


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


def token_ids(order: dict[str, Any], config: Any) -> list[int]:
    """The text by the source's tokenizer, or ids spread over the vocabulary without one."""
    text_config = config.get_text_config()
    rows = text_config.vocab_size
    most = min(order["most_tokens"], getattr(text_config, "max_position_embeddings", None) or 512)
    ids: list[int] = []
    if order["tokenizer"] is not None:
        from tokenizers import Tokenizer

        ids = Tokenizer.from_file(order["tokenizer"]).encode(order["text"]).ids
        ids = [token for token in ids if token < rows]
    if len(ids) < order["fewest_tokens"]:
        ids = [(2654435761 * (step + 1)) % rows for step in range(most)]
    return ids[:most]


def compute(blocks: Blocks, ids: list[int], folder: Path, answer: Any) -> dict[str, Any]:
    """Run the model and write what each decoder layer takes and gives, and the logits.

    Writes `layer-<n>.safetensors` with `input` and `output` [tokens, hidden], and
    `ends.safetensors` with `ids` [tokens] and `logits` [tokens, vocabulary].
    """
    import torch
    from safetensors.torch import save_file

    place = {
        id(layer): (path, n) for path, ls in blocks.lists.items() for n, layer in enumerate(ls)
    }
    ran: dict[str, int] = {}
    inputs: dict[int, Any] = {}
    count = 0

    def before(name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        blocks.load(names[name])
        if id(module) in place:
            given: Any = args[0] if args else kwargs["hidden_states"]
            inputs[id(module)] = given[0].float().clone(memory_format=torch.contiguous_format)

    def after(name: str, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal count
        blocks.free(names[name])
        count += 1
        answer(block=name, number=count, of=len(names))
        if id(module) not in place:
            return
        path, number = place[id(module)]
        if ran.setdefault(path, 0) != number:
            raise UnprovableError(f"transformers runs {name} out of order or more than once")
        ran[path] += 1
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        pair = {"input": inputs.pop(id(module)), "output": hidden[0].float().contiguous()}
        save_file(pair, folder / f"{path}-{number:05d}.safetensors")

    names = {}
    for name, module in blocks.blocks.items():
        own = [f"{name}.{key}" for key in module.state_dict()]
        if not own:
            continue
        names[name] = own
        module.register_forward_pre_hook(
            lambda m, a, k, name=name: before(name, m, a, k), with_kwargs=True
        )
        module.register_forward_hook(
            lambda m, a, k, o, name=name: after(name, m, a, k, o), with_kwargs=True
        )
    blocks.load(blocks.resident)
    with torch.inference_mode():
        logits = blocks.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    ends = {"ids": torch.tensor(ids, dtype=torch.int32), "logits": logits.float().contiguous()}
    save_file(ends, folder / "ends.safetensors")
    if not logits.isfinite().all():
        raise UnprovableError("transformers' own logits are infinite or NaN")
    if not ran:
        raise UnprovableError("transformers' model has no list of layers")
    path = max(ran, key=lambda each: ran[each])
    return {"layers": ran[path], "path": path, "tokens": len(ids)}


def peak_bytes() -> int:
    """The largest resident memory that this process has had."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text("ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
