"""Finds the model's tensors among the values of a PyTorch checkpoint.

Owns which dict is meant and the names that its tensors get. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoint.folder import shown
from checkpoint.json_file import quoted
from checkpoint.pickles.unpickle import SAVE_AGAIN
from checkpoint.pickles.values import NESTING, Record, parts_of
from configs.errors import PickleError

REBUILT = frozenset({"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"})
PARAMETERS = frozenset(
    {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
)
# Under which training code keeps the weights beside other things, and those other things.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
_NOT_WEIGHTS = ("optim", "lr_scheduler", "scheduler", "scaler", "rng")
_DEEPEST = 8
_MOST = 1_000_000


@dataclass(frozen=True)
class StateDict:
    """The tensors of a model, not yet looked at.

    Attributes:
        tensors: Each by its name.
        left_out: What else stood in the checkpoint, by name.
    """

    tensors: dict[str, Record]
    left_out: tuple[str, ...]


def find_state_dict(value: object, path: Path) -> StateDict:
    """The one dict of tensors in what a checkpoint holds.

    One nested under `model`, `state_dict`, `model_state_dict` or `module` is found; names
    of dicts within are joined by dots. Numbers and text, and what an optimizer keeps, are
    left out.

    Raises:
        PickleError: There is none, or more than one that could be meant.
    """
    left_out: list[str] = []
    known: dict[int, bool] = {}
    for _ in range(_DEEPEST):
        if not isinstance(value, dict):
            raise PickleError(path, "holds something else than a dict of tensors", SAVE_AGAIN)
        groups = [key for key, inner in value.items() if _holds_tensors(inner, known)]
        beside = [key for key in groups if str(key).lower().startswith(_NOT_WEIGHTS)]
        kept = [key for key in groups if key not in beside and key is not None]
        wrapped = [key for key in kept if key in _WRAPPERS and isinstance(value[key], dict)]
        left_out += [str(key) for key in value if key not in kept]
        if not wrapped:
            return _flat({key: value[key] for key in kept}, left_out, known, path)
        if len(kept) > 1:
            what = f"holds more than one set of tensors: {shown(map(str, kept))}"
            raise PickleError(path, what, "save the model's state dict alone, as safetensors")
        value = value[wrapped[0]]
    raise PickleError(path, "holds its tensors too deep", SAVE_AGAIN)


def is_tensor(value: object) -> bool:
    """Whether a value stands for a tensor or a parameter."""
    return isinstance(value, Record) and value.name in REBUILT | PARAMETERS


def _holds_tensors(value: object, known: dict[int, bool]) -> bool:
    """Whether a tensor is anywhere in a value; what is found out is kept in `known`."""
    if id(value) not in known:
        known[id(value)] = any(map(is_tensor, _all_in(value)))
    return known[id(value)]


def _all_in(value: object) -> Iterator[object]:
    waiting, seen = [value], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            yield one
            seen.add(id(one))
            waiting += [part for part in parts_of(one) if isinstance(part, NESTING)]


def _flat(
    groups: Mapping[object, object], left_out: list[str], known: dict[int, bool], path: Path
) -> StateDict:
    tensors: dict[str, Record] = {}
    waiting: list[tuple[str, object, int]] = [("", dict(groups), 0)]
    count = 0
    while waiting:
        prefix, found, depth = waiting.pop()
        if not isinstance(found, dict):
            what = f"holds tensors in {quoted(prefix)}, which is neither a tensor nor a dict"
            raise PickleError(path, what, SAVE_AGAIN)
        if depth > _DEEPEST:
            raise PickleError(path, "holds its tensors too deep", SAVE_AGAIN)
        for key, value in found.items():
            if not isinstance(key, str) or len(prefix) + len(key) > 1000:
                what = f"has a tensor under the key {quoted(repr(key)[:100])}"
                raise PickleError(path, what, "name it by text and save it again")
            name = f"{prefix}.{key}" if prefix else key
            if (count := count + 1) > _MOST:
                raise PickleError(path, f"holds more than {_MOST:,} values", SAVE_AGAIN)
            if isinstance(value, Record) and is_tensor(value):
                if name in tensors:
                    raise PickleError(path, f"holds tensor {quoted(name)} twice", SAVE_AGAIN)
                tensors[name] = value
            elif _holds_tensors(value, known):
                waiting.append((name, value, depth + 1))
            else:
                left_out.append(name)
    if not tensors:
        raise PickleError(path, "holds no tensors", "check the path")
    return StateDict(tensors, tuple(left_out))
