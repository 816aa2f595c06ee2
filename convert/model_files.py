"""Everything of a model folder that is not weights: config, index, tokenizer, papers.

Tokenizer and template files go across byte for byte; Python files never do.
"""

from __future__ import annotations

import json
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
from convert.plan import Plan

FILE_LIMIT = 1 << 30
CHAT_TEMPLATE = "chat_template.jinja"
_NOT_FOR_THE_RESULT = ("_name_or_path", "auto_map", "model_file")


def write_model_files(
    folder: Path,
    source: Path,
    plan: Plan,
    config: dict[str, Any],
    readme_note: str,
    chat_template: bytes | None,
) -> tuple[str, ...]:
    """Write all files but the shards and the receipt.

    Args:
        folder: The staged folder.
        source: The source folder.
        plan: The plan, for the index.
        config: config.json's content.
        readme_note: Goes on top of the README.
        chat_template: A template to put in place of the source's.

    Returns:
        The names of the files written.
    """
    written = {
        CONFIG: _as_json(_for_the_result(config, plan)),
        WEIGHTS_INDEX: _as_json(plan.index()),
    }
    for name in files_like(source, (GENERATION_CONFIG, *CARRIED_PATTERNS)):
        written[name] = disk.read_whole(file_in(source, name), FILE_LIMIT)
    if chat_template is not None:
        written[CHAT_TEMPLATE] = chat_template
    own = file_in(source, README)
    text = disk.read_whole(own, FILE_LIMIT).decode("utf-8", "replace") if own.is_file() else ""
    written[README] = with_note(text, readme_note).encode()
    for name, content in written.items():
        path = folder / name
        if path.parent != folder and not path.parent.exists():
            disk.make_folder(path.parent)
        disk.write_whole(path, content)
    return tuple(written)


def with_note(readme: str, note: str) -> str:
    """A README with a note put before its text, after its YAML front matter if it has one."""
    lines = readme.splitlines(keepends=True)
    body = 0
    if lines and lines[0].rstrip() == "---":
        ends = (at for at, line in enumerate(lines[1:], 1) if line.rstrip() == "---")
        body = next(ends, -1) + 1
    quoted = "".join(f"> {line}\n" for line in note.splitlines())
    return "".join([*lines[:body], quoted, "\n" if lines[body:] else "", *lines[body:]])


def _for_the_result(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The config in sorted order, without what only the source folder could honour."""
    left_out = set(_NOT_FOR_THE_RESULT)
    if not any("vision_tower" in parameter.name for parameter in plan.parameters):
        left_out.add("vision_config")
    return dict(sorted((key, value) for key, value in config.items() if key not in left_out))


def _as_json(value: dict[str, Any]) -> bytes:
    text = json.dumps(tagged(value), indent=4, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
