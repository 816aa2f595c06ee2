"""Power loss: data before names, names before what they replace; read from the calls made."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.cli import main
from tests.faults.faulty import Recording, below_disk


@pytest.mark.parametrize("old", [False, True], ids=["absent", "old"])
def test_everything_is_on_the_disk_before_it_has_its_name(old: bool, llama: Path) -> None:
    (llama / "additional_chat_templates").mkdir()
    (llama / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    out, retired = llama.parent / "out", llama.parent / ".out.ferry-old"
    staged = llama.parent / ".out.ferry-staging" / "model"
    flags = ["--hf-path", str(llama), "-q", "--mlx-path", str(out), "--max-shard-size", "100KB"]
    if old:
        assert main(flags) == 0
    with below_disk(calls := Recording()):
        assert main([*flags, "--force"]) == 0
    published = calls.last("rename", staged)
    files = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    assert len(files) > 8
    for name in files:
        written = calls.last("write", staged / name)
        assert -1 < written < calls.last("sync", staged / name, published), name
    for folder in {(staged / name).parent for name in files}:
        made = max(
            max(
                calls.last("create", staged / name)
                for name in files
                if (staged / name).parent == folder
            ),
            calls.last("mkdir", staged / "additional_chat_templates"),
        )
        assert -1 < made < calls.last("sync", folder, published), folder
    settled = calls.last("sync", out.parent)
    assert published < settled
    if old:
        assert -1 < calls.last("rename", out) < published
        assert settled < calls.last("rename", retired)
