"""The small parts of a chat: its history file, the clipboard, completion, the conversation."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from configs.errors import RequestError, UsageError
from inference.chat import clipboard, places
from inference.chat.conversation import Conversation
from inference.chat.editor import CommandCompleter
from inference.request import Message


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("MLX_FERRY_CHAT_HISTORY", raising=False)
    return tmp_path


def test_only_its_user_reads_the_history(home: Path) -> None:
    path = places.history_file()
    assert path == home / "mlx-ferry/chat_history" and path.read_bytes() == b""
    path.chmod(0o644)
    assert places.history_file() == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_chat_goes_without_a_history_where_there_can_be_none(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_FERRY_CHAT_HISTORY", "off")
    assert places.history_file() is None and not [*home.iterdir()]
    monkeypatch.delenv("MLX_FERRY_CHAT_HISTORY")
    (home / "mlx-ferry").write_text("a file")
    assert places.history_file() is None
    (home / "mlx-ferry").unlink()
    (home / "mlx-ferry").mkdir()
    (home / "mlx-ferry/chat_history").symlink_to(home / "elsewhere")
    assert places.history_file() is None and not (home / "elsewhere").exists()


def test_a_long_history_keeps_its_newer_half(home: Path) -> None:
    path = places.history_file()
    assert path is not None
    entries = [b"\n# 2026-01-01\n+line %d\n" % number for number in range(60_000)]
    path.write_bytes(b"".join(entries))
    assert places.history_file() == path
    kept = path.read_bytes()
    assert 400_000 < len(kept) <= 500_000
    assert kept.startswith(b"\n# ") and kept.endswith(entries[-1])


def test_the_clipboard_is_a_program_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "pbcopy"
    program.write_text(f"#!/bin/sh\nexec /bin/cat > {tmp_path}/taken\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert clipboard.by_program("héllo") is None  # it can't be run yet
    program.chmod(0o755)
    assert clipboard.by_program("héllo") == "pbcopy"
    assert (tmp_path / "taken").read_text() == "héllo"
    program.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(UsageError, match="pbcopy failed"):
        clipboard.by_program("x")


def test_a_terminal_takes_what_no_program_does() -> None:
    shown = clipboard.for_terminal("a\x1b\x07b")
    assert shown.startswith("\x1b]52;c;") and shown.endswith("\x07")
    assert base64.b64decode(shown[7:-1]) == b"a\x1b\x07b"
    with pytest.raises(UsageError, match="too long for the terminal"):
        clipboard.for_terminal("x" * 80_000)


def test_what_completes(tmp_path: Path) -> None:
    (tmp_path / "chat.json").touch()
    completer = CommandCompleter([("/set", "set it"), ("/save", "save it")], ["top_p", "top_k"])

    def completed(text: str) -> list[str]:
        found = completer.get_completions(Document(text), CompleteEvent())
        return [text[: len(text) + each.start_position] + each.text for each in found]

    assert completed("/") == ["/set", "/save"]
    assert completed("/sa") == ["/save"]
    assert completed("/set top") == ["/set top_p", "/set top_k"]
    assert completed("/set top_p 1") == completed("hello /") == completed("/a\n/s") == []
    assert completed(f"/save {tmp_path}/ch") == [f"/save {tmp_path}/chat.json"]


def test_a_message_that_waits_for_its_answer() -> None:
    waits = Conversation().ask("hello")
    assert waits.waits and waits.turns == 1 and waits.answer is None
    with pytest.raises(RequestError, match="/retry answers it"):
        waits.ask("more")
    assert waits.retry() == waits and waits.undo() == Conversation()
    assert waits.edit("other").question == "other"
    answered = waits.answered("hi")
    assert answered.answer == "hi" and answered.retry() == waits
    assert answered.with_system("brief").clear() == Conversation("brief")
    with pytest.raises(RequestError):
        Conversation(None, (Message("assistant", "x"),))
    with pytest.raises(RequestError):
        Conversation(None, (Message("system", "x"),))
    with pytest.raises(RequestError, match="nothing was said"):
        Conversation("brief").undo()
