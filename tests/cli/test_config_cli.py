"""Both commands as processes: start-up cost, --config and --set, and how a process ends."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tomli

from configs.loader import shipped

ROOT = Path(__file__).parents[2]
COMMANDS = ("convert", "inference")
HEAVY = ("mlx", "mlx_lm", "numpy", "transformers", "tokenizers", "torch", "rich", "huggingface_hub")

# What answers at once, and the exit code.
CHEAP: list[tuple[list[str], int]] = [
    (["--help"], 0),
    (["--version"], 0),
    (["--bts", "3"], 2),
    (["--config", "nope"], 2),
    (["--set", "generate.temprature=1"], 2),
    (["--config", "demo", "--show-config"], 0),
]


# As a user's process has it: what a pipe is given is buffered until it is flushed.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def python(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository's root; give its exit code, stdout and stderr."""
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": BUFFERED}
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, text=True, timeout=60, **{**usual, **options}
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("argv", "code"), CHEAP, ids=str)
def test_what_answers_at_once_imports_nothing_heavy(
    command: str, argv: list[str], code: int
) -> None:
    script = f"""
        import sys
        from {command}.cli import main
        code = main({argv!r})
        print("MODULES", *sorted({{name.partition(".")[0] for name in sys.modules}}))
        sys.exit(code)
    """
    done = python("-c", textwrap.dedent(script))
    assert done.returncode == code, done.stderr
    modules = done.stdout.rpartition("MODULES ")[2].split()
    assert "configs" in modules
    assert not set(HEAVY) & set(modules)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("argv", [["--help"], ["--bts", "3"]], ids=str)
def test_what_answers_at_once_costs_little(command: str, argv: list[str]) -> None:
    """The aim is 150 ms of CPU on an idle machine; the limit here allows for a busy one."""

    def cost() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python("-m", command, *argv)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cost() for _ in range(3)) < 0.3


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", shipped())
def test_show_config_of_each_shipped_file(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"{command}.cli").main
    code = main(["--config", name, "--set", "generate.seed=7", "--show-config"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert f'source = "{tomli.loads(out)["model"]["source"]}"  # {name}.toml:' in out
    assert "seed = 7  # --set generate.seed\n" in out
    assert "min_p = 0.0  # default\n" in out


def test_show_config_shows_flags_above_all(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[generate]\ntemperature = 0.1\ntop_p = 0.5\n")
    argv = ["--config", str(tmp_path / "my.toml"), "--set", "generate.temperature=0.2"]
    done = python("-m", "inference", *argv, "--temperature", "0.3", "--show-config")
    assert "temperature = 0.3  # --temperature\n" in done.stdout
    assert f"top_p = 0.5  # {tmp_path / 'my.toml'}:3\n" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--config", "{file}"], "{file}:2: generate.bits: unknown key; did you mean convert.b"),
        (["--config", "qwen3_8"], '--config: no shipped config is named "qwen3_8"; did you mean'),
        (["--config", "no.toml"], "no.toml: no such file; check the path, or name one of demo, "),
        (["--set", "convert.bits=7"], "--set convert.bits: 7 is not allowed; it takes 2, 3, 4, 5"),
        (["--set", "a\x1b[31m=1"], "--set a\\x1b[31m: unknown key; known are model, convert, "),
        (["--confg", "x"], "--confg: unknown option; did you mean --config?"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_exit_code_2(
    command: str, argv: list[str], line: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[generate]\nbits = 4\n", encoding="utf-8")
    done = python("-m", command, *(word.format(file=file) for word in argv))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {line.format(file=file)}")
    assert done.stderr.count("\n") == 1


# A command that does what its first argument names.
SCRIPT = """
    import os, sys, time
    from configs.command import run

    def body(argv):
        if argv[0] == "wait":
            print("kept", end="")
            try:
                print("ready", file=sys.stderr, flush=True)
                time.sleep(60)
            finally:
                print("cleaned", file=sys.stderr, flush=True)
                time.sleep(float(argv[1]))
        elif argv[0] == "many":
            for number in range(1_000_000):
                print(number)
        elif argv[0] == "fail":
            raise RuntimeError("odd")
        elif argv[0] == "print":
            print(argv[1])
        return 0

    sys.exit(run(body))
"""


def script(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return python("-c", textwrap.dedent(SCRIPT), *argv, **options)


def waiting(cleanup: str) -> subprocess.Popen[str]:
    """The script, when it has said that it waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), "wait", cleanup],
        cwd=ROOT,
        env=BUFFERED,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cleans_up_keeps_what_was_printed_and_has_its_code(
    number: signal.Signals, code: int
) -> None:
    process = waiting("0")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "kept", "cleaned\n")


def test_a_second_ctrl_c_ends_at_once() -> None:
    process = waiting("60")
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "cleaned\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT
    process.communicate()


def test_a_pipe_that_nobody_reads_any_more_ends_quietly() -> None:
    command = '"$0" -c "$1" many | head -1; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, textwrap.dedent(SCRIPT)],
        cwd=ROOT,
        env=BUFFERED,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("0\n0\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_into_a_closed_pipe_ends_quietly(command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = python("-m", command, "--help", stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_stdout_that_cannot_be_written_is_an_error_and_said_once(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        limit = (resource.RLIMIT_FSIZE, (0, 0))
        done = script("print", "x", stdout=out, preexec_fn=lambda: resource.setrlimit(*limit))
    assert done.returncode == 1
    assert done.stderr == (
        "error: stdout: File too large; use a file system that takes files of this size\n"
    )


@pytest.mark.parametrize(
    ("closed", "argv", "code", "stdout"),
    [
        (1, ["print", "x"], 0, ""),
        (2, ["print", "x"], 0, "x\n"),
        (2, ["fail"], 70, ""),
    ],
)
def test_a_stream_that_was_closed_from_the_start(
    closed: int, argv: list[str], code: int, stdout: str
) -> None:
    done = script(*argv, preexec_fn=lambda: os.close(closed))
    assert (done.returncode, done.stdout) == (code, stdout)


def test_an_ascii_terminal_is_no_reason_to_fail() -> None:
    done = script("print", "模型", env={**BUFFERED, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, "\\u6a21\\u578b\n")


def test_a_bug_is_one_line_and_a_traceback_only_with_debug() -> None:
    line = "error: internal: RuntimeError: odd; this is a bug, run again with --debug\n"
    done = script("fail")
    assert (done.returncode, done.stderr) == (70, line)
    done = script("fail", "--debug")
    assert done.returncode == 70
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith(line)
