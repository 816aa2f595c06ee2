"""What an adapter adds to a model, as its files say it: the types that both formats are read into.

Owns them and the adapter's digest. Knows nothing of models: whether one has the modules that
are named here is for `checkpoint.architecture.adapted` to say.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from checkpoint import disk
from checkpoint.tensors import TensorRef

CONFIG = "adapter_config.json"
_CHUNK = 1 << 20

Format = Literal["mlx", "peft"]


@dataclass(frozen=True)
class Pair:
    """Two factors whose product is added to a module's weight.

    Attributes:
        module: The module, as the adapter's file names it; PEFT's names are those of
            transformers, without PEFT's own prefix.
        a: The factor that reads the input.
        b: The factor that writes the output.
        rank: What the two have in common.
        scale: What their product is multiplied by.
        magnitude: DoRA's length of each row of the weight, [rows]; None for LoRA.
        embedding: Whether PEFT says that the module is an embedding.
    """

    module: str
    a: TensorRef
    b: TensorRef
    rank: int
    scale: float
    magnitude: TensorRef | None = None
    embedding: bool = False


@dataclass(frozen=True)
class Adapter:
    """An adapter whose config and headers are read and fit each other.

    Attributes:
        path: Its folder.
        format: `mlx` as `mlx_lm.lora` writes it, or `peft`.
        file: The file of its tensors.
        pairs: What it adds, in the order of module names.
        layers: Of mlx's: how many layers, from the last, it may adapt; not above 0 for all.
        keys: Of mlx's: the modules that it adapts, by their names in a layer or in the whole
            model; None for any in those layers.
        transposed: Of PEFT's: whether the model holds the adapted weights as [in, out].
        base: The model that it was made for, as its config names it.
    """

    path: Path
    format: Format
    file: Path
    pairs: tuple[Pair, ...]
    layers: int = 0
    keys: frozenset[str] | None = None
    transposed: bool = False
    base: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        refs = [ref for pair in self.pairs for ref in (pair.a, pair.b, pair.magnitude)]
        return sum(ref.nbytes for ref in refs if ref is not None)

    @cached_property
    def digest(self) -> str:
        """The sha256, in hexadecimal, of its config and tensors: another one is another adapter.

        Raises:
            DiskError: A file can't be read.
        """
        found = hashlib.sha256()
        for path in (self.path / CONFIG, self.file):
            with disk.reading(path) as file:
                size = disk.file_bytes(file, path)
                found.update(b"%d\n" % size)
                for at in range(0, size, _CHUNK):
                    part = bytearray(min(_CHUNK, size - at))
                    disk.read_into(file, path, part, at)
                    found.update(part)
        return found.hexdigest()
