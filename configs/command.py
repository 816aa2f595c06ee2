"""The boundary of a command: whatever happens inside becomes one line on stderr and an exit code.

    0    done; or nobody reads stdout any more (`| head`), which is no failure of ours
    1    bad input, or the machine (disk, memory)
    2    wrong usage or config
    70   a bug of ours
    130  Ctrl-C; a second one ends the process at once
    143  SIGTERM

Messages come from files, models and the network, so no character of them reaches the terminal that
could steer it. This module knows no command, and no error beyond those of the error tree, the
operating system and Python itself.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from configs.errors import DiskError, FerryError

_LONGEST = 2000  # characters of a message; more of it helps nobody

_MENDS = {
    errno.ENOSPC: "free some space and run it again",
    errno.EDQUOT: "free some of your quota and run it again",
    errno.EFBIG: "use a file system that takes files of this size",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "choose a place that can be written",
    errno.ENOENT: "check the path",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "check the disk",
}


class _Terminated(SystemExit):
    """SIGTERM came; an exit, since an event loop keeps every other exception to itself."""


def run(body: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command and turn however it ends into an exit code.

    Args:
        body: The command: arguments in, exit code out.
        argv: The arguments; those of the process when None.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    _occupy_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII terminal is no reason to fail
    with _some_stderr(), _signals():
        try:
            code = _left(body, arguments)
            _flush_stdout()
        except BaseException as error:  # noqa: BLE001 -- the one place that catches everything
            code = _end(error, debug="--debug" in arguments)
    return code


def _occupy_closed() -> None:
    """Open what of stdin, stdout and stderr was closed, so that no file takes its number.

    MLX takes a file that is number 0 for one that could not be opened, and what a library
    prints would go into a file that is number 1 or 2.
    """
    with contextlib.suppress(OSError):
        while (taken := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(taken, True)  # for the processes that we start, too
        os.close(taken)


@contextlib.contextmanager
def _some_stderr() -> Iterator[None]:
    """Let libraries find a stderr, if the process was started with it closed; nobody reads it."""
    if sys.stderr is not None:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def _left(body: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """The exit code of a command that returned, or that left by `SystemExit` as --help does."""
    try:
        return body(arguments)
    except _Terminated:
        raise
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)


def escape(text: str) -> str:
    """Text with every control, bidirectional or otherwise invisible character made visible."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def note(text: str) -> None:
    """One line on stderr; that nobody reads it any more is no reason to stop."""
    if sys.stderr is not None:  # print() would take None for stdout
        with contextlib.suppress(OSError):
            print(escape(text), file=sys.stderr, flush=True)


def say(text: str, mend: str = "send it to another place", end: str = "\n") -> None:
    """Something on stdout, at once.

    Args:
        text: A line, or several.
        mend: What to tell the user if stdout can't be written: what was done all the same.
        end: What follows it.

    Raises:
        DiskError: It can't.
        BrokenPipeError: Nobody reads it any more.
    """
    try:
        print(text, end=end)
        _flush_stdout()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DiskError("stdout", error.strerror or str(error), mend) from error


def warn(text: str) -> None:
    """One line on stderr that begins with "warning:"."""
    note(f"warning: {text}")


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Make SIGINT and SIGTERM exceptions, once: the second time the process ends."""
    raised = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: _Terminated}

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise raised[signal.Signals(number)]

    # A signal that is ignored (nohup, a job in the background) stays ignored.
    before = {number: signal.getsignal(number) for number in raised}
    before = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(error: BaseException, *, debug: bool) -> int:
    if isinstance(error, BrokenPipeError) and _reader_gone():
        _discard_stdout()
        return 0
    if debug:
        import traceback

        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    line, code = _verdict(error)
    if line:
        shortened = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
        note(f"error: {shortened}")
    for added in getattr(error, "__notes__", ()):  # what the user should know all the same
        note(added)
    try:
        _flush_stdout()  # what was printed so far is kept
    except (OSError, ValueError):
        _discard_stdout()
    return code


def _verdict(error: BaseException) -> tuple[str, int]:
    """The line and the exit code of an error; no line for what the user did on purpose."""
    if isinstance(error, FerryError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "", 130
    if isinstance(error, _Terminated):
        return "", 143
    if isinstance(error, FileNotFoundError) and error.filename is None and _nowhere():
        return "the current folder: is no longer there; change to another one: cd", 1
    if isinstance(error, OSError) and error.errno is not None:
        where = "system" if error.filename is None else os.fsdecode(error.filename)
        what = error.strerror or os.strerror(error.errno)
        mend = _MENDS.get(error.errno)
        return f"{where}: {what}; {mend}" if mend else f"{where}: {what}", 1
    if isinstance(error, MemoryError):
        return "memory: there is not enough; close other programs, or use a smaller model", 1
    if type(error).__name__ == "PanicException":  # of pyo3, in tokenizers; no Exception
        return f"tokenizer: the tokenizers library failed: {error}; check tokenizer.json", 1
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"internal: {what}; this is a bug, run again with --debug", 70


def _nowhere() -> bool:
    """Whether the folder that we are in was removed."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _reader_gone() -> bool:
    """Whether it is stdout, and not some socket, whose other end was closed."""
    import select

    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def _flush_stdout() -> None:
    if sys.stdout is None:  # the process was started with stdout closed
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from error


def _discard_stdout() -> None:
    """Send what is still buffered nowhere, so that Python's own flush at exit can't fail."""
    with contextlib.suppress(OSError, ValueError):
        stdout = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout)
        os.close(nowhere)
