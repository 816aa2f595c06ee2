"""Reads the adapter in a folder, whichever tool wrote it.

Owns the choice of the format. Knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path

from checkpoint import disk
from checkpoint.adapters import mlx_format, peft_format
from checkpoint.adapters.adapter import CONFIG, Adapter
from checkpoint.adapters.mlx_format import read_mlx
from checkpoint.adapters.peft_format import read_peft
from checkpoint.json_file import read_json_object
from configs.errors import AdapterError

_PICKLED = "adapter_model.bin"


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's config and headers, and hold them to each other.

    Args:
        folder: As `mlx_lm.lora` or PEFT writes it.

    Raises:
        AdapterError: It is no adapter, or one that can't be honoured.
        SourceError: A file is damaged.
        DiskError: A file can't be read.
    """
    folder = folder.expanduser()
    if not disk.is_folder(folder):
        raise AdapterError(folder, "is not a folder", "give the folder of an adapter")
    names = disk.list_folder(folder)
    if CONFIG not in names:
        raise AdapterError(folder, f"has no {CONFIG}", "give the folder of an adapter")
    config = read_json_object(folder / CONFIG, AdapterError)
    if "peft_type" in config:
        if peft_format.FILE not in names:
            pickled = "save it as safetensors" if _PICKLED in names else "download it again"
            raise AdapterError(folder, f"has no {peft_format.FILE}", pickled)
        return read_peft(folder, config)
    if mlx_format.FILE not in names:
        raise AdapterError(folder, f"has no {mlx_format.FILE}", "is the training done?")
    return read_mlx(folder, config)
