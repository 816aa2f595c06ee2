"""`--trust-remote-code`: the source's own Python runs only with it, and never gets across."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiktoken
from tokenizers import Tokenizer

from checkpoint.remote_code.trusted import ask_trusted
from configs.errors import TokenizerError
from convert.cli import main
from inference.cli import main as infer

FAST = """
import os
from pathlib import Path
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

Path({trace!r}).touch()
assert "HF_TOKEN" not in os.environ
print("code may print")

class TinyTokenizer(PreTrainedTokenizerFast):
    def __init__(self, **more):
        made = Tokenizer.from_file({vocabulary!r})
        super().__init__(tokenizer_object=made, **more)
"""
SLOW = """
import tiktoken
from transformers import PreTrainedTokenizer

class TinyTokenizer(PreTrainedTokenizer):
    def __init__(self, **more):
        ranks = {bytes([i]): i for i in range(256)}
        ranks |= {b"he": 256, b"ll": 257, b"hell": 258}
        self.tokenizer = tiktoken.Encoding(
            "tiny", pat_str=r"\\s?\\p{L}+|\\s?\\p{N}+|[^\\s\\p{L}\\p{N}]+|\\s+",
            mergeable_ranks=ranks, special_tokens={"<|end|>": 300},
        )
        super().__init__(**more | {"eos_token": "<|end|>"})

    @property
    def vocab_size(self):
        return 301

    def get_vocab(self):
        return {"<|end|>": 300}

    def _convert_token_to_id(self, token):
        return token if isinstance(token, int) else 300

    def _convert_id_to_token(self, index):
        return index

    def _tokenize(self, text, **more):
        return self.tokenizer.encode_ordinary(text)
"""
SLOWER = """
from transformers import PreTrainedTokenizer

class TinyTokenizer(PreTrainedTokenizer):
    vocab_size = 1

    def get_vocab(self):
        return {"a": 0}

    def _tokenize(self, text, **more):
        return ["a"]

    def _convert_token_to_id(self, token):
        return 0
"""
CONFIG = """
from transformers import PretrainedConfig

class TinyConfig(PretrainedConfig):
    model_type = "internlm2"

    def __init__(self, rope_theta=54321, bias=True, hidden_size=7, **more):
        self.rope_theta, self.bias, self.hidden_size = rope_theta, bias, hidden_size
        super().__init__(**more)
"""


def with_code(folder: Path, code: str) -> Path:
    """The folder with a tokenizer of its own class; gives what that leaves when it is run."""
    trace, vocabulary = folder.parent / "trace", folder.parent / "vocabulary.json"
    (folder / "tokenizer.json").rename(vocabulary)
    text = code.replace("{trace!r}", repr(str(trace)))
    text = text.replace("{vocabulary!r}", repr(str(vocabulary)))
    (folder / "tokenization_tiny.py").write_text(text)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "TinyTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_tiny.TinyTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return trace


def test_without_the_flag_nothing_runs(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trace = with_code(llama, FAST)
    out = llama.parent / "out"
    for command, flags in (
        (main, ["--hf-path", str(llama), "--mlx-path", str(out)]),
        (infer, ["--model", str(llama), "--prompt", "hello"]),
    ):
        assert command(flags) == 1
        error = capfd.readouterr().err
        assert "needs the folder's own class 'tokenization_tiny.TinyTokenizer'" in error
        assert "--trust-remote-code" in error
        assert error.count("\n") == 1
    assert not trace.exists()
    assert not out.exists()


def test_with_it_a_tokenizer_json_is_made(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_averysecrettokenindeed")
    trace = with_code(llama, FAST)
    out = llama.parent / "out"
    flags = ["--hf-path", str(llama), "--mlx-path", str(out), "--trust-remote-code", "--json"]
    assert main(flags) == 0
    said = json.loads(capfd.readouterr().out)
    assert trace.exists()
    made = Tokenizer.from_file(str(out / "tokenizer.json"))
    expected = Tokenizer.from_file(str(llama.parent / "vocabulary.json"))
    text = "def main():\n    print('hello, 你好')"
    assert made.encode(text).ids == expected.encode(text).ids
    assert not list(out.rglob("*.py"))
    assert not list(llama.rglob("*.pyc"))
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert "auto_map" not in settings
    assert settings["chat_template"]
    receipt = json.loads((out / "conversion.json").read_text())
    assert receipt["options"]["trust_remote_code"] is True
    note = "--trust-remote-code: the source's own tokenization_tiny.TinyTokenizer was run"
    assert any(line.startswith(note) for line in receipt["notes"])
    assert said["notes"] == receipt["notes"]
    assert infer(["--model", str(out), "--prompt", "hello", "--max-tokens", "2"]) == 0


def test_with_it_nothing_runs_that_is_not_needed(llama: Path) -> None:
    trace = with_code(llama, FAST)
    (llama.parent / "vocabulary.json").rename(llama / "tokenizer.json")
    out = llama.parent / "out"
    assert main(["--hf-path", str(llama), "--mlx-path", str(out), "--trust-remote-code"]) == 0
    assert not trace.exists()
    assert not list(out.rglob("*.py"))
    receipt = json.loads((out / "conversion.json").read_text())
    assert not any("was run" in line for line in receipt["notes"])


def test_a_class_around_tiktoken(llama: Path) -> None:
    with_code(llama, SLOW)
    config = json.loads((llama / "config.json").read_text())
    made = Tokenizer.from_buffer(ask_trusted(llama, config).files["tokenizer.json"])
    ranks = {bytes([i]): i for i in range(256)} | {b"he": 256, b"ll": 257, b"hell": 258}
    pattern = r"\s?\p{L}+|\s?\p{N}+|[^\s\p{L}\p{N}]+|\s+"
    expected = tiktoken.Encoding(
        "tiny", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|end|>": 300}
    )
    for text in ("hello hell he ll", "你好 123\n\n", ""):
        assert made.encode(text).ids == expected.encode_ordinary(text)
    assert made.token_to_id("<|end|>") == 300


def test_code_that_fails(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with_code(llama, "import nothing_of_this_name\n")
    out = llama.parent / "out"
    assert main(["--hf-path", str(llama), "--mlx-path", str(out), "--trust-remote-code"]) == 1
    error = capfd.readouterr().err
    assert "nothing_of_this_name" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_class_that_can_not_be_made_a_file(llama: Path) -> None:
    with_code(llama, SLOWER)
    with pytest.raises(TokenizerError, match=r"in Python alone \(TinyTokenizer\)"):
        ask_trusted(llama, {})


def test_a_config_class_fills_in_what_config_json_leaves_out(llama: Path) -> None:
    (llama / "configuration_tiny.py").write_text(CONFIG)
    told = {
        "model_type": "internlm2",
        "hidden_size": 64,
        "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"},
    }
    (llama / "config.json").write_text(json.dumps(told))
    found = ask_trusted(llama, told)
    assert found.config | told == found.config
    assert (found.config["rope_theta"], found.config["bias"]) == (54321, True)
    assert "configuration_tiny.TinyConfig was run to fill in config.json" in found.notes[0]


def test_it_does_not_go_with_a_source_that_is_consumed(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--hf-path", "org/name", "--mlx-path", "out", "--trust-remote-code"]
    assert main([*flags, "--consume-source"]) == 2
    assert "does not go with --trust-remote-code" in capfd.readouterr().err
