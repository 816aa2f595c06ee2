"""Starts the process in which transformers computes the source, and reads what it leaves.

Owns the order to that process, its failures as typed errors, and the text that is run.
Imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from checkpoint.architecture.config_values import untagged
from checkpoint.dtypes import DTYPES
from checkpoint.folder import SAFETENSORS, file_in, is_mlx, is_staging
from checkpoint.gguf_files.source import gguf_file
from checkpoint.model_config import read_model_config
from checkpoint.nanochat.folder import find_files
from checkpoint.shards import read_catalog
from checkpoint.tensors import Catalog
from configs.errors import ArchitectureError, DiskError, FerryError, SourceError

FLAG = "--prove"
WITHOUT = "convert without --prove"
MOST_TOKENS, FEWEST_TOKENS = 96, 16
TEXT = """\
The ferry left at dawn, when the river was still grey, and carried forty people and one dog.
"How far is it?" asked the child; nobody knew. 渡船在黎明时离开，船上有四十个人。
def crossing(width_m: float, speed: float = 1.5) -> float:
    return width_m / speed if speed > 0 else float("inf")  # 17.5 minutes at 3.1 knots
Then the fog lifted, and on the other bank they saw the lights of the town, one by one.
"""

_TOKENIZER = "tokenizer.json"
_LIBRARY = "torch"

Step = Callable[[str, int, int], None]
"""Told a block's name, its number from one, and how many there are."""


@dataclass(frozen=True)
class Reference:
    """What transformers computed from a source, on the CPU in float32.

    Attributes:
        folder: Where it left the tensors.
        model: The class of the model.
        path: The name of the list of its layers.
        layers: How many they are.
        ids: The text's token ids, [tokens] int32.
        peak_memory_bytes: Largest resident memory of its process.
    """

    folder: Path
    model: str
    path: str
    layers: int
    ids: mx.array
    peak_memory_bytes: int

    def layer(self, number: int) -> tuple[mx.array, mx.array]:
        """What a layer took and what it gave, each [tokens, hidden] float32."""
        tensors = _load(self.folder / f"{self.path}-{number:05d}.safetensors")
        return tensors["input"], tensors["output"]

    def logits(self) -> mx.array:
        """[tokens, vocabulary] float32."""
        return _load(self.folder / "ends.safetensors")["logits"]


@dataclass(frozen=True)
class Source:
    """A source that transformers may be able to compute.

    Attributes:
        path: The folder.
        config: Its config.json.
        catalog: Its tensors.
    """

    path: Path
    config: dict[str, Any]
    catalog: Catalog


def _refuse_quantized(path: Path, config: dict[str, Any], catalog: Catalog) -> None:
    """Refuse a source of packed weights: transformers would compute them in other kernels."""
    text_config = config.get("text_config") or {}
    found = config.get("quantization_config") or text_config.get("quantization_config")
    scaled = next((ref.dtype for ref in catalog.values() if DTYPES[ref.dtype].needs_scales), None)
    if not (found or scaled):
        return
    method = found.get("quant_method") if isinstance(found, dict) else scaled
    what = f"is quantized ({method}), and a proof reads plain weights alone"
    raise ArchitectureError(path, what, WITHOUT)


def require_torch() -> None:
    """See that torch is there; costs nothing.

    Raises:
        FerryError: it is not.
    """
    if importlib.util.find_spec(_LIBRARY) is None:
        raise FerryError(
            FLAG,
            "needs torch, which is not installed; without it nothing can say whether the result "
            "computes what transformers computes: RoPE, norms, attention, the layout of matrices",
            "pip install 'mlx-ferry[prove]', or leave it out",
        )


def open_source(path: Path) -> Source:
    """Read what a source says of itself.

    Raises:
        FerryError: torch is not installed.
        ArchitectureError: it is packed in a way that transformers does not read here.
        SourceError: it is damaged or incomplete.
    """
    require_torch()
    if is_staging(path):
        raise SourceError(path, "is a conversion that was never finished", "run it again")
    if gguf_file(path) is not None:
        what = "is a GGUF file, and a proof reads safetensors alone"
        raise ArchitectureError(path, what, WITHOUT)
    if find_files(path) is not None:
        what = "holds nanochat's own files, which transformers can't read: nothing to prove by"
        raise ArchitectureError(path, what, WITHOUT)
    config = read_model_config(path)
    catalog = read_catalog(path)
    if any(shard.suffix != SAFETENSORS for shard in catalog.shards):
        what = "holds PyTorch's files, and a proof reads safetensors alone"
        raise ArchitectureError(path, what, WITHOUT)
    if is_mlx(config, catalog.metadata):
        raise ArchitectureError(
            path, "is an MLX folder, which transformers can't read: nothing to prove by", WITHOUT
        )
    _refuse_quantized(path, config, catalog)
    return Source(path, config, catalog)


def check_reference(path: Path) -> None:
    """See whether transformers can compute a source, without reading a weight.

    Builds the model and finds a tensor for each of its parameters; takes some seconds.

    Raises:
        FerryError: torch is not installed.
        ArchitectureError: transformers can't, or this machine has too little memory for it.
        SourceError: the source is damaged or incomplete.
    """
    found = run_transformers(open_source(path), None, lambda *_: None)
    needed, held = 3 * found["largest_block_bytes"], _physical_memory()
    if held is not None and needed > held:
        raise ArchitectureError(
            FLAG,
            f"a single block of this model needs about {needed / 1e9:,.0f} GB in float32, and "
            f"this machine has {held / 1e9:,.0f} GB",
            WITHOUT,
        )


@contextmanager
def computed_reference(source: Source, step: Step) -> Iterator[Reference]:
    """Let transformers compute a source; what it leaves is removed at the end.

    Raises:
        ArchitectureError: transformers can't.
        DiskError: there is no room for what it leaves, a few megabytes a layer.
    """
    with _temporary_folder() as folder:
        found = run_transformers(source, folder, step)
        yield Reference(
            folder=folder,
            model=found["model"],
            path=found["path"],
            layers=found["layers"],
            ids=_load(folder / "ends.safetensors")["ids"],
            peak_memory_bytes=found["peak_memory_bytes"],
        )


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        made = tempfile.TemporaryDirectory(prefix="mlx-ferry-proof-")
    except OSError as error:
        raise DiskError(
            "TMPDIR", f"no folder for temporary files ({error.strerror})", "set TMPDIR to one"
        ) from error
    with made as name:
        yield Path(name)


def order_for(source: Source, folder: Path | None) -> dict[str, Any]:
    """What the process is to do: compute into a folder, or, without one, only build the model."""
    tokenizer = file_in(source.path, _TOKENIZER)
    return {
        "config": untagged(source.config),
        "tensors": {name: str(ref.file.absolute()) for name, ref in source.catalog.items()},
        "tokenizer": str(tokenizer.absolute()) if tokenizer.is_file() else None,
        "text": TEXT,
        "most_tokens": MOST_TOKENS,
        "fewest_tokens": FEWEST_TOKENS,
        "folder": None if folder is None else str(folder),
    }


def run_transformers(source: Source, folder: Path | None, step: Step) -> dict[str, Any]:
    """Start the process and follow it to its end; gives its facts.

    Raises:
        ArchitectureError: transformers can't compute the source.
    """
    order = order_for(source, folder)
    script = Path(__file__).with_name("transformers_child.py")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        try:
            child = subprocess.Popen(
                # -P: neither the script's folder nor the current one may offer modules.
                [sys.executable, "-P", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                encoding="utf-8",
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
        except OSError as error:
            what = f"can't start {sys.executable!r} ({error.strerror})"
            raise ArchitectureError("transformers", what) from error
        with child:
            try:
                last = _follow(child, json.dumps(order), step)
            except BaseException:
                child.kill()  # an interrupt must not leave it computing
                raise
            code = child.wait()
        complaints.seek(0)
        if "unprovable" in last:
            raise ArchitectureError(FLAG, last["unprovable"], WITHOUT)
        if "done" not in last:
            raise _failure(complaints.read(), code)
    return {**last["done"], "peak_memory_bytes": last["peak_memory_bytes"]}


def _follow(child: subprocess.Popen[str], order: str, step: Step) -> dict[str, Any]:
    """Give the order and read answers until the last."""
    if child.stdin is None or child.stdout is None:
        return {}
    try:
        with child.stdin as stdin:
            stdin.write(order)
    except BrokenPipeError:
        return {}  # it ended before it read; why is told on its stderr
    last: dict[str, Any] = {}
    for line in child.stdout:
        last = json.loads(line)
        if "block" in last:
            step(last["block"], last["number"], last["of"])
    return last


def _failure(complaints: str, code: int) -> ArchitectureError:
    """The error for a process that failed: the last line of its traceback says why."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit status {code}"
    if code < 0 and not lines:
        reason = f"ended by signal {-code}; is there too little memory?"
    return ArchitectureError(FLAG, f"transformers can't compute it ({reason[:300]})", WITHOUT)


def _load(file: Path) -> dict[str, mx.array]:
    """Tensors of a file that the process wrote, in memory: no GPU ever waits for a file."""
    tensors = mx.load(str(file), stream=mx.cpu)
    if not isinstance(tensors, dict):
        raise ArchitectureError(FLAG, f"{file.name} of transformers' process is no safetensors")
    mx.eval(tensors)
    return tensors


def _physical_memory() -> int | None:
    """Bytes of memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
