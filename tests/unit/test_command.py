"""The command boundary: every way a command can end, its exit code and its one line."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tokenizers

from configs.command import escape, note, run, say, warn
from configs.errors import (
    ArchitectureError,
    ConfigError,
    DestinationError,
    DiskError,
    FerryError,
    GenerationError,
    HeaderError,
    HubError,
    ModelConfigError,
    RequestError,
    ShardIndexError,
    SourceError,
    TemplateError,
    TokenizerError,
    UsageError,
    VerifyError,
)


class Panic(BaseException):
    """Stands for what tokenizers raises; the real one is below."""


class Ended:
    """How a command that raises ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


End = Callable[..., Ended]


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> End:
    def end(error: BaseException, *argv: str) -> Ended:
        def body(arguments: Sequence[str]) -> int:
            print("so far", end="")
            raise error

        code = run(body, argv)
        return Ended(code, *capsys.readouterr())

    return end


def test_a_command_that_returns_ends_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda argv: len(argv), ["a", "b"]) == 2
    assert capsys.readouterr() == ("", "")


def test_the_arguments_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", "x", "y", "z"])
    assert run(lambda argv: int(list(argv) == ["x", "y", "z"])) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 2),
        (RequestError, 2),
        (ConfigError, 2),
        (FerryError, 1),
        (SourceError, 1),
        (HeaderError, 1),
        (ShardIndexError, 1),
        (ModelConfigError, 1),
        (ArchitectureError, 1),
        (TokenizerError, 1),
        (TemplateError, 1),
        (HubError, 1),
        (DestinationError, 1),
        (DiskError, 1),
        (VerifyError, 1),
        (GenerationError, 1),
    ],
)
def test_our_own_errors(ended: End, error: type[FerryError], code: int) -> None:
    end = ended(error("a.toml:3", "is wrong", "mend it"))
    assert (end.code, end.err) == (code, "error: a.toml:3: is wrong; mend it\n")
    assert end.out == "so far"


OTHERS: list[tuple[BaseException, int, str]] = [
    (KeyboardInterrupt(), 130, ""),
    (OSError(errno.ENOSPC, "No space left on device", "out/x"), 1, "out/x: No space left on de"),
    (PermissionError(errno.EACCES, "Permission denied", b"x"), 1, "x: Permission denied; check"),
    (OSError(errno.EIO, "Input/output error"), 1, "system: Input/output error; check the disk"),
    (OSError(errno.ENOTEMPTY, "Directory not empty", Path("a")), 1, "a: Directory not empty"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "system: Broken pipe"),  # some socket's
    (MemoryError(), 1, "memory: there is not enough; "),
    (ValueError("no\nsuch \x1b[31m thing"), 70, "internal: ValueError: no\\nsuch \\x1b[31m t"),
    (RecursionError(), 70, "internal: RecursionError; this is a bug, run again with --debug"),
    (OSError("odd"), 70, "internal: OSError: odd; this is a bug, run again with --debug"),
    (Panic("odd"), 70, "internal: Panic: odd; this is a bug, run again with --debug"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code", "line"), OTHERS, ids=lambda value: repr(value)[:30])
def test_other_errors(ended: End, error: BaseException, code: int, line: str) -> None:
    end = ended(error)
    assert end.code == code
    assert end.out == "so far"
    assert end.err.startswith(f"error: {line}" if line else "")
    assert end.err.count("\n") == bool(line)
    assert end.err.rstrip("\n").isprintable()


def test_a_panic_of_the_tokenizers_library_is_bad_input(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The real thing: a `BaseException` that no `except Exception` sees."""

    def body(argv: Sequence[str]) -> int:
        # A stride not below the length is an assertion inside the library.
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        encoding = tokenizer.encode("a a a a")
        encoding.truncate(2, stride=2)
        return 0

    assert run(body, []) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: tokenizer: the tokenizers library failed: ")


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (3, 3), (None, 0), ("text", 1)])
def test_leaving_by_system_exit(ended: End, code: int | str | None, expected: int) -> None:
    assert ended(SystemExit(code)).code == expected


def test_a_traceback_only_with_debug(ended: End) -> None:
    assert "Traceback" not in ended(ConfigError("a", "b", "c")).err
    end = ended(ConfigError("a", "b", "c"), "--debug")
    assert "Traceback" in end.err
    assert end.err.endswith("error: a: b; c\n")


def test_one_line_however_long_the_message(ended: End) -> None:
    err = ended(SourceError("tensor", "x" * 100_000)).err
    assert err.count("\n") == 1
    assert len(err) < 2100


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain, with spaces", "plain, with spaces"),
        ("模型 café 🚀", "模型 café 🚀"),
        ("a\nb\rc\td\x00", "a\\nb\\rc\\td\\x00"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x7f\x85\x9b31m", "\\x7f\\x85\\x9b31m"),
        ("\u202egpj.exe\u2066\u200f\u061c", "\\u202egpj.exe\\u2066\\u200f\\u061c"),
        ("\u2028\u2029\ufeff\u200b", "\\u2028\\u2029\\ufeff\\u200b"),
        ("\ud800\U000e0041", "\\ud800\\U000e0041"),
    ],
)
def test_what_could_steer_a_terminal_is_escaped(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_notes_and_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    note("a\x1b")
    warn("b")
    assert capsys.readouterr() == ("", "a\\x1b\nwarning: b\n")


def test_no_stderr_is_no_reason_to_stop_nor_to_use_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    note("lost")
    closed = io.StringIO()
    closed.write = _raise_broken_pipe  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", closed)
    note("lost")
    monkeypatch.undo()
    assert capsys.readouterr() == ("", "")


def _raise_broken_pipe(text: str) -> int:
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_sigterm_ends_with_143_and_cleans_up() -> None:
    cleaned = []

    def body(argv: Sequence[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            return 0
        finally:
            cleaned.append(True)

    assert run(body, []) == 143
    assert cleaned == [True]


def test_an_event_loop_keeps_no_signal_to_itself() -> None:
    async def terminated() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.sleep(5)

    def body(argv: Sequence[str]) -> int:
        asyncio.run(terminated())
        return 0

    assert run(body, []) == 143


def test_the_handlers_of_signals_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    during = []

    def body(argv: Sequence[str]) -> int:
        during.extend(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))
        os.kill(os.getpid(), signal.SIGINT)
        return 0

    assert run(body, []) == 130
    assert not set(during) & set(before)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


EARLY = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1] + ".cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
module = __import__(sys.argv[1] + ".__main__", fromlist=["main"])
sys.exit(module.main())
"""


@pytest.mark.parametrize("package", ["convert", "inference"])
def test_ctrl_c_while_the_command_is_imported(package: str) -> None:
    command = [sys.executable, "-c", EARLY, package]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stdout, made.stderr) == (130, "", "")


def test_what_is_said_with_a_mend_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    say("a")
    closed = io.StringIO()
    closed.write = _raise_no_space  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", closed)
    with pytest.raises(DiskError) as caught:
        say("a", "the rest is done")
    assert str(caught.value) == "stdout: No space left on device; the rest is done"
    closed.write = _raise_broken_pipe  # type: ignore[method-assign]
    with pytest.raises(BrokenPipeError):
        say("a")


def _raise_no_space(text: str) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(lambda argv: os.kill(os.getpid(), signal.SIGINT) or 7, []) == 7
    finally:
        signal.signal(signal.SIGINT, before)
