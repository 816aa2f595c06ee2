"""The line where a user writes: editing, history, completion.

Owns the keys and what completes; prompt_toolkit does the rest. Knows commands by name
alone.

    Enter        sends what is written
    Alt-Enter    begins a new line
    Ctrl-C       drops what is written
    Ctrl-D       leaves, on an empty line
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_MENU_LINES = 4


class Editor:
    """Reads what the user writes on the terminal.

    Args:
        history: The file of what was written before; None keeps it for this chat alone.
        commands: Names that complete at the beginning of a line, with a word on each.
        settings: Names that complete after /set.
    """

    def __init__(
        self, history: Path | None, commands: Sequence[tuple[str, str]], settings: Sequence[str]
    ) -> None:
        kept: History = InMemoryHistory() if history is None else _History(str(history))
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_keys(),
            history=kept,
            completer=CommandCompleter(commands, settings),
            reserve_space_for_menu=_MENU_LINES,
        )

    def read(self, default: str = "") -> str | None:
        """What the user writes; empty if it was dropped, None if the user leaves."""
        try:
            return self._session.prompt(default=default)
        except KeyboardInterrupt:
            return ""
        except EOFError:
            return None


class CommandCompleter(Completer):
    """Completes commands, and what follows some of them; nothing else.

    Args:
        commands: Names, with a word on each.
        settings: What may follow /set.
    """

    def __init__(self, commands: Sequence[tuple[str, str]], settings: Sequence[str]) -> None:
        self._commands = commands
        self._settings = settings
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """What can stand where the cursor is."""
        line = document.text_before_cursor
        name, space, rest = line.partition(" ")
        if not line.startswith("/") or "\n" in line:
            return
        if not space:
            for command, about in self._commands:
                if command.startswith(name):
                    yield Completion(command, -len(name), display_meta=about)
        elif name == "/set" and " " not in rest:
            for setting in self._settings:
                if setting.startswith(rest):
                    yield Completion(setting, -len(rest))
        elif name in ("/save", "/load"):
            yield from self._paths.get_completions(Document(rest), event)


class _History(FileHistory):
    """The file of the history; that it can't be read or written is no reason to stop."""

    def load_history_strings(self) -> Iterable[str]:
        with suppress(OSError):
            return [*super().load_history_strings()]
        return []

    def store_string(self, string: str) -> None:
        with suppress(OSError, UnicodeError):
            super().store_string(string)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
