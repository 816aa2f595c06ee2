"""Everything of a model folder that is not weights: config, index, tokenizer, papers.

Tokenizer and template files go across byte for byte; Python files never do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.architecture.config_values import tagged
from checkpoint.folder import (
    CARRIED_PATTERNS,
    CONFIG,
    GENERATION_CONFIG,
    README,
    WEIGHTS_INDEX,
    file_in,
    files_like,
)
from convert.model_card import model_card
from convert.plan import Plan

FILE_LIMIT = 1 << 30
CHAT_TEMPLATE = "chat_template.jinja"
_NOT_FOR_THE_RESULT = ("_name_or_path", "auto_map", "model_file")


def write_model_files(
    folder: Path,
    source: Path,
    plan: Plan,
    config: dict[str, Any],
    chat_template: bytes | None,
    made: Mapping[str, bytes],
) -> tuple[str, ...]:
    """Write all files but the shards, the card and the receipt.

    Args:
        folder: The staged folder.
        source: The source folder.
        plan: The plan, for the index.
        config: config.json's content.
        chat_template: A template to put in place of the source's.
        made: Files to write in place of the source's.

    Returns:
        The names of the files written.
    """
    disk.write_whole(folder / CONFIG, _as_json(_for_the_result(config, plan)))
    disk.write_whole(folder / WEIGHTS_INDEX, _as_json(plan.index()))
    if chat_template is not None:
        made = {**made, CHAT_TEMPLATE: chat_template}
    for name, content in made.items():
        disk.write_whole(folder / name, content)
    carried = files_like(source, (GENERATION_CONFIG, *CARRIED_PATTERNS))
    carried = [name for name in carried if name not in made]
    for name in carried:
        path = folder / name
        if path.parent != folder:
            disk.make_folder(path.parent, exist_ok=True)
        disk.write_whole(path, disk.read_whole(file_in(source, name), FILE_LIMIT))
    return (CONFIG, WEIGHTS_INDEX, *made, *carried)


def read_readme(source: Path) -> str:
    """The source's README.md, the start of the new card; empty if it has none."""
    path = file_in(source, README)
    return disk.read_whole(path, FILE_LIMIT).decode("utf-8", "replace") if path.is_file() else ""


def write_card(folder: Path, source: Path, receipt: dict[str, Any]) -> None:
    """Write the model card, which is made from the receipt, and list it there.

    Args:
        folder: The staged folder.
        source: The source folder.
        receipt: The receipt; its `files` gets the card's entry.
    """
    content = model_card(receipt, read_readme(source)).encode()
    disk.write_whole(folder / README, content)
    digest = hashlib.sha256(content).hexdigest()
    entry = {"file": README, "bytes": len(content), "sha256": digest}
    receipt["files"] = sorted([*receipt["files"], entry], key=lambda file: str(file["file"]))


def _for_the_result(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The config in sorted order, without what only the source folder could honour."""
    left_out = set(_NOT_FOR_THE_RESULT)
    if not any("vision_tower" in parameter.name for parameter in plan.parameters):
        left_out.add("vision_config")
    return dict(sorted((key, value) for key, value in config.items() if key not in left_out))


def _as_json(value: dict[str, Any]) -> bytes:
    text = json.dumps(tagged(value), indent=4, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
