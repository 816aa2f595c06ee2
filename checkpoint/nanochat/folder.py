"""Where the files of a nanochat checkpoint lie.

    FOLDER/model_000650.pt + meta_000650.json      as on the hub, or one model's own folder
    FOLDER/<dN>/...                                one of the folders below
    FOLDER/<stage>_checkpoints/<dN>/...            nanochat's base directory

Of several stages the last of training is taken, of several models the largest, of several
steps the highest; what was passed over is told. Owns those rules. Opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from checkpoint import disk
from checkpoint.folder import CONFIG, file_in, shown
from configs.errors import SourceError

_MODEL = re.compile(r"model_(\d{6,10})\.pt")
_TAG = re.compile(r"d(\d{1,4})")
# From the last of training to the first.
STAGES = ("chatrl", "chatsft", "sft", "mid", "base")
_SUFFIX = "_checkpoints"
_TOKENIZER = "tokenizer.pkl"


@dataclass(frozen=True)
class NanochatFiles:
    """The files of one checkpoint.

    Attributes:
        model: The weights.
        meta: What they are of.
        tokenizer: None where there is none.
        step: Of training.
        notes: What was chosen among several, a line each.
    """

    model: Path
    meta: Path
    tokenizer: Path | None
    step: int
    notes: tuple[str, ...]


def is_nanochat(names: Iterable[str]) -> bool:
    """Whether a folder of these files is nanochat's own, and in no other layout too."""
    listed = set(names)
    if CONFIG in listed:
        return False
    return any(_MODEL.fullmatch(name) for name in listed) or bool(_stages(listed))


def find_files(folder: Path, step: int | None = None) -> NanochatFiles | None:
    """The checkpoint in a folder; None if it is not one of nanochat's.

    Args:
        folder: In any of the layouts.
        step: Of training; the highest if None.

    Raises:
        SourceError: There is none of that step, or a part of it is missing.
        DiskError: A folder can't be listed.
    """
    names = disk.list_folder(folder)
    if CONFIG in names:
        return None
    notes: list[str] = []
    home = _home(folder, names, notes)
    if home is None:
        return None
    steps = _steps(disk.list_folder(home))
    chosen = max(steps) if step is None else step
    if chosen not in steps:
        have = ", ".join(map(str, sorted(steps)))
        raise SourceError(home, f"has no checkpoint of step {step}", f"it has those of {have}")
    if step is None and len(steps) > 1:
        others = ", ".join(str(other) for other in sorted(steps) if other != chosen)
        notes.append(f"step {chosen} is taken, and not {others}: --step chooses")
    digits = steps[chosen].removeprefix("model_").removesuffix(".pt")
    meta = file_in(home, f"meta_{digits}.json")
    if not meta.exists():
        raise SourceError(meta, "is missing", "it says the sizes of the model beside it")
    return NanochatFiles(file_in(home, steps[chosen]), meta, _tokenizer(home), chosen, tuple(notes))


def repository_files(names: Iterable[str]) -> list[str]:
    """The files of the highest step of a repository of nanochat's own; none if it is not one.

    Args:
        names: All that it has, those in folders with their paths.
    """
    listed = set(names)
    steps = _steps(listed)
    if CONFIG in listed or not steps:
        return []
    model = steps[max(steps)]
    meta = model.replace("model_", "meta_", 1).removesuffix(".pt") + ".json"
    places = [_TOKENIZER, f"tokenizer/{_TOKENIZER}"]
    return [model, meta, next((place for place in places if place in listed), _TOKENIZER)]


def _steps(names: Iterable[str]) -> dict[int, str]:
    return {int(found[1]): name for name in names if (found := _MODEL.fullmatch(name))}


def _stages(names: Iterable[str]) -> list[str]:
    listed = set(names)
    return [stage for stage in STAGES if f"{stage}{_SUFFIX}" in listed]


def _home(folder: Path, names: list[str], notes: list[str]) -> Path | None:
    """The folder that holds the files themselves."""
    if _steps(names):
        return folder
    holding: dict[str, Path] = {}
    for stage in _stages(names):
        inner = file_in(folder, f"{stage}{_SUFFIX}")
        found = _largest(inner, notes) if inner.is_dir() else None
        if found is not None:
            holding[stage] = found
    if holding:
        stage = next(iter(holding))
        notes.append(f"{holding[stage].relative_to(folder)} is taken")
        if len(holding) > 1:
            notes[-1] += f", and not {', '.join(list(holding)[1:])}: name a folder to choose"
        return holding[stage]
    return _largest(folder, notes) if folder.name.endswith(_SUFFIX) else None


def _largest(folder: Path, notes: list[str]) -> Path | None:
    """The folder of the largest model, by the number of layers that it is called by."""
    sizes = {}
    for name in disk.list_folder(folder):
        inner = file_in(folder, name)
        if inner.is_dir() and _steps(disk.list_folder(inner)):
            tag = _TAG.fullmatch(name)
            sizes[name] = int(tag[1]) if tag else -1
    if not sizes:
        return None
    chosen = max(sizes, key=lambda name: (sizes[name], name))
    if len(sizes) > 1:
        others = shown(name for name in sorted(sizes) if name != chosen)
        notes.append(f"{chosen} of {folder.name} is taken, and not {others}")
    return folder / chosen


def _tokenizer(home: Path) -> Path | None:
    """The tokenizer that belongs to the files: with them, beside them, or of the base directory."""
    above = home.parent
    inner = f"tokenizer/{_TOKENIZER}"
    places = [(home, _TOKENIZER), (home, inner), (above, inner)]
    if above.name.endswith(_SUFFIX):
        places.append((above.parent, inner))
    return next(
        (file_in(folder, name) for folder, name in places if (folder / name).exists()), None
    )
