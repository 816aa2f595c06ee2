"""Notes in our own cache folder: where they lie, and that nothing hangs on them."""

from __future__ import annotations

import sys
from pathlib import Path

import pexpect
import pytest

from checkpoint import own_cache

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("platform", "xdg", "expected"),
    [
        ("linux", "", "home/.cache/mlx-ferry"),
        ("darwin", "", "home/Library/Caches/mlx-ferry"),
        ("linux", "xdg", "xdg/mlx-ferry"),
        ("darwin", "xdg", "xdg/mlx-ferry"),
    ],
)
def test_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, xdg: str, expected: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / xdg) if xdg else "relative/counts/not")
    assert own_cache.folder() == tmp_path / expected


def test_what_is_noted_is_recalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert own_cache.recall("kind", "key") == {}
    own_cache.note_down("kind", "key", {"a": 1})
    own_cache.note_down("kind", "key", {"a": 2})
    assert own_cache.recall("kind", "key")["a"] == 2
    assert own_cache.recall("kind", "other") == own_cache.recall("other", "key") == {}
    [note] = (tmp_path / "mlx-ferry/kind").iterdir()
    for content in (b"", b"[]", b"\xff", b'{"key": "other"}', b"[" * 100_000):
        note.write_bytes(content)
        assert own_cache.recall("kind", "key") == {}
    note.unlink()
    note.mkdir()
    assert own_cache.recall("kind", "key") == {}
    own_cache.note_down("kind", "key", {"a": 3})


def test_the_bar_on_a_terminal() -> None:
    code = (
        "import sys; from checkpoint.byte_bar import byte_bar\n"
        "with byte_bar('checking 2 files', 10**9, quiet='quiet' in sys.argv) as tell:\n"
        "    tell(10**9)\n"
        "print('done')"
    )
    for flags, shown in (([], True), (["quiet"], False)):
        child = pexpect.spawn(sys.executable, ["-c", code, *flags], cwd=str(ROOT), timeout=60)
        child.expect("done")
        assert (b"checking 2 files" in child.before) is shown
        child.close()
