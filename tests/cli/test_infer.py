"""The command `infer`: its flags, what goes together, what is printed where."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.cli import main, parser
from tests.factories_inference import edit_json, write_mlx

HEAVY = ("mlx", "mlx_lm", "numpy", "transformers", "tokenizers", "jinja2", "torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mlx(tmp_path_factory.mktemp("model"))


def infer(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def imported_by(*arguments: str, expect: int = 0) -> set[str]:
    """The top-level packages that a run of the command imports."""
    code = (
        "import sys\nfrom inference.cli import main\ncode = main(sys.argv[1:])\n"
        "sys.stderr.write('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *arguments]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == expect, made.stderr
    return set(made.stderr.rpartition("\n")[2].split())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        (("--unheard",), 2),
        (("--prompt", "x", "--temperature", "-1"), 2),
        (("--prompt", "x", "--score"), 2),
    ],
)
def test_help_and_wrong_usage_import_nothing_heavy(arguments: tuple[str, ...], code: int) -> None:
    assert not imported_by(*arguments, expect=code) & set(HEAVY)


def test_a_run_does_not_import_transformers(folder: Path) -> None:
    found = imported_by("--model", str(folder), "--prompt", "hi", "--max-tokens", "2")
    assert "mlx" in found
    assert not found & {"transformers", "torch", "numpy", "asyncio", "ssl", "unittest"}


def test_importing_the_package_does_nothing() -> None:
    command = [sys.executable, "-c", "import inference, sys; print(len(sys.modules))"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(made.stdout) < 100


def test_help_is_grouped_and_has_defaults_and_an_example() -> None:
    text = parser().format_help()
    for part in ("model:", "prompt:", "generation:", "scoring:", "example:", "default: 0.7", "512"):
        assert part in text


def test_python_dash_m(folder: Path) -> None:
    command = [sys.executable, "-m", "inference", "--version"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert made.stdout.startswith("infer ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--prompt", "x", "--prompt-file", "y"), "--prompt-file"),
        (("--prompt", "x", "--raw", "--system", "y"), "--system"),
        (("--prompt", "x", "--ids-file", "y"), "--ids-file"),
        (("--score",), "--score"),
        (("--score", "--ids-file", "x", "--prompt", "y"), "--prompt"),
        (("--score", "--ids-file", "x", "--prompt-file", "y"), "--prompt-file"),
        (("--score", "--ids-file", "x", "--stream"), "--stream"),
        (("--score", "--ids-file", "x", "--raw"), "--raw"),
        (("--score", "--ids-file", "x", "--system", "y"), "--system"),
        (("--score", "--ids-file", "x", "--temperature", "1"), "--temperature"),
        (("--score", "--ids-file", "x", "--max-tokens", "1"), "--max-tokens"),
        (("--score", "--ids-file", "x", "--stop", "y"), "--stop"),
        ((), "--prompt"),
        (("--prompt", "x"), "--model"),
        (("--prompt", "x", "--promt", "y"), "--promt"),
        (("--prompt", "x", "--config", "unheard"), "--config"),
        (("--prompt", "x", "--set", "generate.temprature=1"), "generate.temprature"),
        (("--quiet", "--verbose", "--prompt", "x"), "--verbose"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: tuple[str, ...], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert infer(*arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("error: ") and named in err


def test_a_prompt_file_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert infer("--model", "x", "--prompt-file", "/nowhere/prompt") == 1
    assert "/nowhere/prompt" in capfd.readouterr().err


ASK = ("--prompt", "The quick", "--seed", "11", "--max-tokens", "40")


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--raw",),
        ("--temperature", "0"),
        ("--temperature", "3", "--top-p", "1"),  # characters of several bytes, in pieces
        ("--stop", "o"),
        ("--stop", "\ufffd", "--stop", "e"),
        ("--system", "be brief", "--repetition-penalty", "1.4", "--min-p", "0.05"),
    ],
)
def test_streamed_text_is_the_same_bytes(
    folder: Path, flags: tuple[str, ...], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    asked = ("--model", folder, *ASK, "--quiet", *flags)
    assert infer(*asked) == 0
    plain = capfdbinary.readouterr()
    assert infer(*asked, "--stream") == 0
    streamed = capfdbinary.readouterr()
    assert plain.out == streamed.out and plain.err == streamed.err == b""
    assert plain.out.endswith(b"\n")
    assert infer(*asked, "--json") == 0
    made = json.loads(capfdbinary.readouterr().out)
    assert made["text"].encode() + b"\n" == plain.out
    assert infer(*asked, "--stream", "--json") == 0
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert "".join(line["text"] for line in lines if line["type"] == "delta") == made["text"]
    stops = [flags[index + 1] for index, flag in enumerate(flags) if flag == "--stop"]
    assert not any(stop in made["text"] for stop in stops)
    if made["finish_reason"] == "length":
        assert made["usage"]["completion_tokens"] == 40


def test_the_seed_decides(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert infer("--model", folder, "--prompt", "a", "--seed", seed, "--quiet") == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_a_prompt_from_stdin_and_from_a_file(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    text = "línea\n"
    (tmp_path / "prompt").write_text(text)
    shown = []
    for flags in (["--prompt", text], ["--prompt-file", tmp_path / "prompt"], ["--prompt", "-"]):
        stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert infer("--model", folder, "--temperature", "0", "--quiet", *flags) == 0
        shown.append(capfd.readouterr().out)
    assert shown[0] == shown[1] == shown[2]


def test_statistics_go_to_stderr(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert infer("--model", folder, *ASK) == 0
    err, cut = capfd.readouterr().err.splitlines()
    assert cut == "the answer was cut after 40 tokens: --max-tokens allows more"
    for part in ("float32", "loaded", "prompt", "answer", "first token", "peak memory", "seed 11"):
        assert part in err


def test_verbose_says_where_things_come_from(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert infer("--model", folder, *ASK, "--verbose") == 0
    err = capfd.readouterr().err
    for part in (f"folder: {folder}", "tokenizer_config.json", "context: 256"):
        assert part in err


def test_settings_come_in_their_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_mlx(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"temperature": 0.11, "top_k": 12}')
    config = tmp_path / "mine.toml"
    config.write_text(f'[model]\npath = "{folder}"\n[generate]\ntop_k = 13\nmin_p = 0.2\n')
    flags = ("--config", config, "--set", "generate.min_p=0.3", "--seed", "4")
    assert infer(*flags, "--show-config") == 0
    shown = capfd.readouterr().out
    for line in ("temperature = 0.11  # generation_config.json", "top_k = 13", "min_p = 0.3"):
        assert line in shown
    assert infer(*flags, "--prompt", "hi", "--json", "--quiet", "--max-tokens", "3") == 0
    assert json.loads(capfd.readouterr().out)["model"] == str(folder)


def test_a_bad_generation_config_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_mlx(tmp_path)
    (folder / "generation_config.json").write_text('{"temperature": "hot"}')
    assert infer("--model", folder, "--prompt", "hi") == 1
    assert "generation_config.json" in capfd.readouterr().err


def test_a_system_message_needs_a_template(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_mlx(tmp_path)
    edit_json(folder / "tokenizer_config.json", chat_template=None)
    assert infer("--model", folder, *ASK, "--quiet") == 0  # plain completion
    plain = capfd.readouterr().out
    assert infer("--model", folder, *ASK, "--quiet", "--raw") == 0
    assert capfd.readouterr().out == plain
    assert infer("--model", folder, *ASK, "--system", "be brief") == 2
    assert "no chat template" in capfd.readouterr().err


def test_a_template_of_the_settings(
    tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    given = ("--set", f"tokenizer.chat_template={tmp_path / 'mine.jinja'}", "--temperature", "0")
    assert infer("--model", folder, *ASK, "--quiet", *given) == 0
    own = capfd.readouterr().out
    assert infer("--model", folder, *ASK, "--quiet", "--raw", "--temperature", "0") == 0
    assert capfd.readouterr().out == own


def test_more_tokens_that_end_an_answer(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", folder, *ASK, "--quiet", "--raw", "--temperature", "0", "--json")
    assert infer(*asked) == 0
    text = json.loads(capfd.readouterr().out)["text"]
    end = next(char for char in text[2:] if char.isascii() and char.isprintable())
    assert infer(*asked, "--set", f"tokenizer.eos_tokens=[{json.dumps(end)}]") == 0
    made = json.loads(capfd.readouterr().out)
    assert made["usage"]["completion_tokens"] <= 40 and text.startswith(made["text"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_is_used_and_told(
    folder: Path, dtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ("--model", folder, "--prompt", "hi", "--max-tokens", "2", "--quiet", "--json")
    assert infer(*asked, "--dtype", dtype) == 0
    assert json.loads(capfd.readouterr().out)["dtype"] == dtype
    assert infer(*[flag for flag in asked if flag != "--quiet"], "--dtype", dtype) == 0
    assert ("warning: " in capfd.readouterr().err) == (dtype != "float32")


@pytest.mark.parametrize("bits", ["4", "8"])
def test_the_kv_cache_may_be_quantized(
    folder: Path, bits: str, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ("--model", folder, "--prompt", "hi", "--max-tokens", "4", "--quiet")
    assert infer(*asked, "--set", f"memory.kv_bits={bits}") == 0
    assert capfd.readouterr().out


def test_score(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids = [5, 6, 7, 8, 9]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    asked = ("--model", folder, "--score", "--ids-file", tmp_path / "ids.json")
    assert infer(*asked, "--json", "--quiet") == 0
    made: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert [token["id"] for token in made["tokens"]] == ids
    assert made["tokens"][0]["logprob"] is None
    bits = [token["bits"] for token in made["tokens"][1:]]
    assert made["total_bits"] == pytest.approx(sum(bits))
    assert made["perplexity"] == pytest.approx(2 ** (sum(bits) / 4))
    assert infer(*asked) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == len(ids) + 2 and "perplexity" in out
    assert "float32" in err


def test_score_needs_no_tokenizer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_mlx(tmp_path, tokenizer=False)
    (tmp_path / "ids.json").write_text("[1, 2, 3]")
    asked = ("--model", folder, "--score", "--ids-file", tmp_path / "ids.json", "--json")
    assert infer(*asked, "--quiet") == 0
    assert json.loads(capfd.readouterr().out)["tokens"][1]["text"] is None


def test_stale_shards_are_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_mlx(tmp_path)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    assert infer("--model", folder, "--prompt", "hi", "--max-tokens", "2") == 0
    assert "warning: " in capfd.readouterr().err
    assert infer("--model", folder, "--prompt", "hi", "--max-tokens", "2", "--quiet") == 0
    assert capfd.readouterr().err == ""


def test_a_closed_pipe_ends_it_quietly(folder: Path) -> None:
    asked = f"--model {folder} --prompt hi --stream --quiet"
    command = f"{sys.executable} -m inference {asked} | head -c 1"
    made = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert made.stderr == b""


def test_ctrl_c_keeps_what_was_printed(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path, eos_token_id=None)
    edit_json(folder / "tokenizer_config.json", eos_token=None)  # so that it goes on and on
    command = [sys.executable, "-m", "inference", "--model", str(folder), "--prompt", "hi"]
    command += ["--set", "memory.context=100000", "--max-tokens", "90000", "--quiet", "--stream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(30) == 130
        assert process.stderr.read() == b""
    assert first and rest.endswith(b"\n")


def test_what_a_config_describes_is_converted_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--config", "demo", "--prompt", "hi"]) == 2
    assert "convert --config demo" in capsys.readouterr().err
    assert main(["--config", "demo", "--show-config"]) == 0


@pytest.mark.parametrize("closed", ["stdin", "stdout"])
def test_a_closed_stream_is_one_line(
    closed: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--prompt", "-" if closed == "stdin" else "hi", "--max-tokens", "2"]
    monkeypatch.setattr(sys, closed, None)
    assert main(["--model", str(folder), *flags]) == 2
    assert f"{closed} is closed" in capsys.readouterr().err.replace("stdout: is", "stdout is")


def test_a_memory_limit_below_the_weights_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--prompt", "hi", "--set", "memory.limit=1000"]
    assert main(["--model", str(folder), *flags]) == 2
    assert "1,000 bytes" in capsys.readouterr().err
