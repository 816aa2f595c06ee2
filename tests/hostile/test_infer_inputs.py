"""Cases 24 to 28, 54 to 58 and 60 as a user of `infer` meets them: one line and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend

from inference.cli import main
from tests.factories_inference import edit_json, save, write_mlx


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that no test changes."""
    return write_mlx(tmp_path_factory.mktemp("model"))


def infer(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def error_line(capfd: pytest.CaptureFixture[str]) -> str:
    out, err = capfd.readouterr()
    assert out.strip() == ""
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


# 24, 25: the tokenizer's files.


def test_a_tokenizer_larger_than_the_embedding(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_mlx(tmp_path, vocab_size=300)
    assert infer("--model", folder, "--prompt", "hi") == 1
    assert "has token id 319, and the embedding has 300 rows" in error_line(capfd)


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "<html>"]
)
def test_a_tokenizer_that_is_missing_or_invalid(
    tmp_path: Path, content: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_mlx(tmp_path) / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert infer("--model", tmp_path, "--prompt", "hi") == 1
    assert str(path) in error_line(capfd)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"]
)
def test_a_link_that_leaves_the_folder(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_mlx(tmp_path / "model")
    (folder / "generation_config.json").write_text("{}")
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert infer("--model", folder, "--prompt", "hi") == 1
    assert "leaves the folder" in error_line(capfd)


# 26, 27: a panic inside the tokenizers library, here from a regex without end.


def test_a_panic_of_the_tokenizer_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_mlx(tmp_path) / "tokenizer.json"
    backend = Backend.from_file(str(path))
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex("(a+)+$"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.save(str(path))
    bad = "a" * 60 + "b"
    assert infer("--model", tmp_path, "--prompt", bad) == 1
    assert "gave up on this text" in error_line(capfd)
    assert infer("--model", tmp_path, "--prompt", "bb", "--max-tokens", "2", "--quiet") == 0


# 28: ids.


@pytest.mark.parametrize("number", [5, -1, 2**32 - 1])
def test_ids_twice_or_out_of_range(
    tmp_path: Path, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_mlx(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] = number
    path.write_text(json.dumps(content))
    assert infer("--model", tmp_path, "--prompt", "hi") == 1
    assert str(path) in error_line(capfd)


@pytest.mark.parametrize("value", [-1, 2**32 - 1, "2", [1, None]])
def test_ids_that_end_an_answer(
    tmp_path: Path, value: object, capfd: pytest.CaptureFixture[str]
) -> None:
    edit_json(write_mlx(tmp_path) / "config.json", eos_token_id=value)
    assert infer("--model", tmp_path, "--prompt", "hi") == 1
    assert "eos_token_id" in error_line(capfd)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("[1, 320]", 2, "token 2 is 320, and the vocabulary has 320 ids"),
        ("[-1]", 2, "token 1 is -1"),
        ("[1.0]", 1, "1.0, which is not a token id"),
        ("[true]", 1, "not a token id"),
        ('{"ids": [1]}', 1, "not a JSON array of token ids"),
        ("[]", 1, "not a JSON array of token ids"),
        ("[1,", 1, "is not valid JSON"),
        ('["\\ud800"]', 1, "is not valid JSON"),
    ],
)
def test_ids_to_score(
    shared_folder: Path,
    tmp_path: Path,
    content: str,
    code: int,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "ids.json"
    path.write_text(content)
    assert infer("--model", shared_folder, "--score", "--ids-file", path) == code
    assert message in error_line(capfd)


# 54, 55: prompts that say nothing, or nothing that is text. The model is not even looked for.


@pytest.mark.parametrize("prompt", ["", " ", "\n\t\n", "\u3000"])
def test_a_blank_prompt(prompt: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert infer("--model", "nowhere", "--prompt", prompt) == 2
    assert "blank" in error_line(capfd)
    (tmp_path / "prompt").write_text(prompt)
    assert infer("--model", "nowhere", "--prompt-file", tmp_path / "prompt") == 2
    assert "blank" in error_line(capfd)


def test_nul_is_a_character_like_any_other(
    shared_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt").write_bytes(b"a\0b")
    arguments = ["--model", shared_folder, "--prompt-file", tmp_path / "prompt", "--raw", "--json"]
    assert infer(*arguments, "--max-tokens", "1", "--quiet") == 0
    assert json.loads(capfd.readouterr().out)["usage"]["prompt_tokens"] == 3


def test_a_lone_surrogate(capfd: pytest.CaptureFixture[str]) -> None:
    assert infer("--model", "nowhere", "--prompt", "a\ud800") == 2
    assert "not valid Unicode" in error_line(capfd)


@pytest.mark.parametrize("flag", ["--system", "--stop"])
def test_a_lone_surrogate_beside_the_prompt(
    shared_folder: Path, flag: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert infer("--model", shared_folder, "--prompt", "hi", flag, "a\ud800") == 2
    assert "not valid Unicode" in error_line(capfd) or "Unicode" in flag


def test_bytes_that_are_no_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt").write_bytes(b"ab\xff")
    assert infer("--model", "nowhere", "--prompt-file", tmp_path / "prompt") == 1
    assert "not valid Unicode (byte 3)" in error_line(capfd)
    command = [sys.executable, "-m", "inference", "--model", "nowhere", "--prompt", b"a\xff"]
    made = subprocess.run(command, capture_output=True, check=False)
    assert made.returncode == 2 and b"not valid Unicode" in made.stderr


# 56: too long.


def test_a_prompt_beyond_the_context(
    shared_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ("--model", shared_folder, "--raw", "--prompt", "x")
    assert infer(*asked, "--max-tokens", "256") == 2
    assert "1 prompt tokens and max_tokens 256 are beyond the context of 256" in error_line(capfd)
    settings = ("--set", "memory.context=20", "--max-tokens", "20")
    assert infer(*asked, *settings) == 2
    assert "context of 20; shorten it, or lower --max-tokens to 19" in error_line(capfd)
    (tmp_path / "prompt").write_bytes(b"a" * 100_000_000)
    assert infer("--model", shared_folder, "--prompt-file", tmp_path / "prompt") == 2
    assert "has 100000000 characters, and the context of 256 tokens" in error_line(capfd)


# 57: values, refused before the model is looked for.


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--temperature", "warm"),
        ("--top-p", "0"),
        ("--top-p", "1.1"),
        ("--top-k", "-1"),
        ("--top-k", "1.5"),
        ("--min-p", "-0.1"),
        ("--min-p", "2"),
        ("--temperature", "1e300"),
        ("--top-k", "99999999999"),
        ("--xtc-probability", "1.5"),
        ("--xtc-threshold", "0.6"),
        ("--repetition-penalty", "0"),
        ("--repetition-context", "-1"),
        ("--presence-penalty", "nan"),
        ("--frequency-penalty", "inf"),
        ("--logit-bias", "5"),
        ("--logit-bias", "5=200"),
        ("--min-tokens", "-1"),
        ("--stop-token", ""),
        ("--logprobs", "21"),
        ("--n", "0"),
        ("--max-tokens", "0"),
        ("--max-tokens", "-5"),
        ("--seed", "-1"),
        ("--stop", ""),
        ("--dtype", "int8"),
        ("--device", "tpu"),
    ],
)
def test_values_out_of_range(flag: str, value: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert infer("--model", "nowhere", "--prompt", "hi", f"{flag}={value}") == 2
    assert flag in error_line(capfd)


def test_top_k_beyond_the_vocabulary_filters_nothing(
    shared_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ("--model", shared_folder, "--prompt", "hi", "--seed", "1", "--max-tokens", "8")
    assert infer(*asked, "--top-k", "0", "--quiet") == 0
    free = capfd.readouterr().out
    assert infer(*asked, "--top-k", "999999", "--quiet") == 0
    assert capfd.readouterr().out == free


# 58: a model that breaks down.


@pytest.fixture
def broken_folder(tmp_path: Path) -> Path:
    """A model that says NaN."""
    return with_head(write_mlx(tmp_path), lambda head: mx.full(head.shape, float("nan")))


def with_head(folder: Path, change: Callable[[mx.array], mx.array]) -> Path:
    """The folder with another last layer."""
    tensors: Any = mx.load(str(folder / "model.safetensors"))
    tensors["lm_head.weight"] = change(tensors["lm_head.weight"])
    mx.eval(tensors)
    save(folder, tensors, json.loads((folder / "config.json").read_text()))
    return folder


def test_nan_ends_the_answer(broken_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert infer("--model", broken_folder, "--prompt", "hi", "--quiet") == 1
    assert "model: produced NaN or infinite logits at token 1" in error_line(capfd)
    assert infer("--model", broken_folder, "--prompt", "hi", "--quiet", "--json") == 1
    made = json.loads(capfd.readouterr().out)
    assert made["finish_reason"] == "error" and made["text"] == ""
    assert made["usage"]["completion_tokens"] == 0


# 60: a terminal.


@pytest.mark.parametrize("flags", [(), ("--stream",)])
def test_escape_sequences_stop_before_a_terminal(tmp_path: Path, flags: tuple[str, ...]) -> None:
    import pexpect

    folder = write_mlx(tmp_path)
    backend = Backend.from_file(str(folder / "tokenizer.json"))

    def says_escape_or_bell(head: mx.array) -> mx.array:
        """Whatever the sum of the last hidden state, one of the two has the highest logit."""
        changed = mx.zeros(head.shape)
        changed[backend.encode("\x1b").ids[0]] = mx.ones(head.shape[1])
        changed[backend.encode("\x07").ids[0]] = -mx.ones(head.shape[1])
        return changed

    with_head(folder, says_escape_or_bell)
    arguments = ["-m", "inference", "--model", str(folder), "--prompt", "hi", "--raw", "--quiet"]
    arguments += ["--max-tokens", "20", "--temperature", "0", *flags]
    piped = subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    assert len(piped.stdout) == 21 and set(piped.stdout[:-1]) <= set(b"\x1b\x07")
    shown, status = pexpect.run(
        f"{sys.executable} {' '.join(arguments)}", withexitstatus=True, timeout=60
    )
    assert status == 0 and not set(shown) & set(b"\x1b\x07") and b"\\x" in shown
