"""The receipt of a conversion: what was made from what, how, and how large it came out.

Written as conversion.json into the model folder and printed by `--json`. Field
names are fixed; more may be added. The same conversion gives the same receipt, byte
for byte, so what a single run took is no part of it.
"""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoint.adapters.adapter import Adapter
from checkpoint.architecture.mapping import ModelMap
from checkpoint.source import SourceFolder
from configs import __version__
from configs.mixtures import MIXTURES
from configs.quantization import ConvertTable
from convert.plan import Plan
from convert.source_forms import source_forms
from convert.verify import FileDigest

FILE = "conversion.json"
_VERSIONS_OF = ("mlx", "mlx-lm", "transformers", "safetensors")


def make_receipt(
    *,
    given: str,
    source: SourceFolder,
    table: ConvertTable,
    dtype: str | None,
    model_map: ModelMap,
    plan: Plan,
    shards: tuple[FileDigest, ...],
    files: tuple[FileDigest, ...],
    warnings: tuple[str, ...],
    trust_remote_code: bool,
    adapter: Adapter | None = None,
) -> dict[str, Any]:
    """The receipt's content.

    Args:
        given: The source as the user named it.
        source: What it was resolved to.
        table: The options in force.
        dtype: The dtype floating parameters were cast to, if any.
        model_map: The mapping.
        plan: The plan that was carried out.
        shards: The shards with their digests.
        files: All other files with theirs.
        warnings: What the user was warned of.
        trust_remote_code: Whether code of the source's own was allowed to run; `notes` say
            which was.
        adapter: What was added to the weights.
    """
    quantized = [parameter for parameter in plan.parameters if parameter.quantization]
    return {
        "source": {
            "given": given,
            "origin": source.origin,
            "repo_id": source.repo_id,
            "commit": source.commit,
        },
        **({} if adapter is None else {"adapter": _adapter(adapter)}),
        "architecture": model_map.architecture,
        "options": {
            "quantize": table.quantize,
            "dequantize": table.dequantize,
            **(_quantization(table) if table.quantize else {}),
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "max_shard_size": table.max_shard_size,
            "layers": [asdict(rule) for rule in table.layers],
        },
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS_OF}
        | {"mlx-ferry": __version__}
        | {"python": platform.python_version(), "platform": platform.platform()},
        "parameters": plan.weights,
        "quantized_parameters": sum(parameter.size for parameter in quantized),
        "bits_per_weight": plan.bits_per_weight,
        "tensor_bytes": plan.tensor_bytes,
        "shards": [_digest(shard) for shard in shards],
        "files": [_digest(file) for file in files],
        "kept": [
            {"name": parameter.name, "reason": parameter.note}
            for parameter in plan.parameters
            if parameter.note
        ],
        **({"mixture": plan.mixture.as_json()} if plan.mixture else {}),
        "source_quantization": source_forms(plan.parameters, model_map.recipes),
        "dropped": [asdict(dropped) for dropped in model_map.dropped],
        "notes": list(model_map.notes),
        "warnings": list(warnings),
        "expected_peak_memory_bytes": plan.expected_peak_bytes,
    }


def _quantization(table: ConvertTable) -> dict[str, Any]:
    if not table.is_mixed:
        keys = ["bits", "group_size", "mode"]
    else:
        keys = [key for key in MIXTURES if getattr(table, key) is not None]
        keys += ["group_size"] if table.recipe is not None else []
    return {key: getattr(table, key) for key in (*keys, "method")}


def _adapter(adapter: Adapter) -> dict[str, Any]:
    return {
        "given": str(adapter.path),
        "format": adapter.format,
        "base": adapter.base,
        "modules": len(adapter.pairs),
        "sha256": adapter.digest,
    }


def _digest(file: FileDigest) -> dict[str, Any]:
    return {"file": file.file, "bytes": file.nbytes, "sha256": file.sha256}


def peak_memory_bytes() -> int:
    """The largest resident memory this process has had so far."""
    if sys.platform == "linux":
        # Not getrusage: its figure begins with what the parent held when it forked.
        status = Path("/proc/self/status").read_text("ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
