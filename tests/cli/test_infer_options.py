"""Modes x options: every option works in a mode or is refused there by name, as the table says."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from inference.cli import main
from inference.flags import GENERATE_FLAGS, parser
from inference.options import MODES, OPTIONS, Option, markdown
from tests.factories_adapters import mlx_pairs, write_mlx_adapter
from tests.factories_inference import edit_json, write_mlx
from tests.factories_talk import TEMPLATE

ROOT = Path(__file__).parents[2]
IN_PLACE_OF_A_RUN = {"--show-config", "--version", "--help"}

# One value for each option that takes one; what it names is in the folder.
VALUES = {
    "--model": "{folder}",
    "--adapter": "{folder}/adapter",
    "--load-bits": "8",
    "--context": "200",
    "--kv-bits": "8",
    "--kv-start": "4",
    "--draft-model": "{folder}",
    "--prompt-cache": "{folder}/cache",
    "--memory-limit": "8GB",
    "--device": "cpu",
    "--dtype": "float32",
    "--config": "{folder}/mine.toml",
    "--set": "memory.context=200",
    "--prompt": "say it",
    "--prompt-file": "{folder}/prompt",
    "--system": "be brief",
    "--text-file": "{folder}/prompt",
    "--ids-file": "{folder}/ids.json",
    "--session": "{folder}/chat.json",
    "--window": "16",
    "--stride": "4",
    "--html": "{folder}/page.html",
    "--batch": "{folder}/rows.jsonl",
    "--output": "{folder}/out.jsonl",
    "--batch-size": "2",
    "--temperature": "0.5",
    "--top-p": "0.9",
    "--top-k": "5",
    "--min-p": "0.1",
    "--xtc-probability": "0.5",
    "--xtc-threshold": "0.05",
    "--repetition-penalty": "1.3",
    "--repetition-context": "0",
    "--presence-penalty": "0.5",
    "--presence-context": "4",
    "--frequency-penalty": "0.5",
    "--frequency-context": "4",
    "--logit-bias": "70=5",
    "--max-tokens": "3",
    "--min-tokens": "2",
    "--stop": "e",
    "--stop-token": "<|im_end|>",
    "--seed": "9",
    "--logprobs": "2",
    "--thinking": "hide",
    "--thinking-budget": "2",
    "--tools": "{folder}/tools.json",
    "--json-schema": "{folder}/schema.json",
    "--regex": "[a-z]{2,5}",
    "--choice": "yes",
    "--n": "2",
}
MODE_FLAGS = {
    "text": ["--prompt", "hi"],
    "stream": ["--prompt", "hi", "--stream"],
    "json": ["--prompt", "hi", "--json"],
    "stream json": ["--prompt", "hi", "--stream", "--json"],
    "chat": ["--chat"],
    "batch": ["--batch", "{folder}/rows.jsonl"],
    "score": ["--score", "--ids-file", "{folder}/ids.json"],
}
# What an option needs beside it, in the modes that honour it.
BESIDE = {
    "--force": ["--output", "{folder}/forced.jsonl"],
    "--kv-start": ["--kv-bits", "8"],
}
# What gives a text to score, of which there is one.
TEXTS = ("--prompt", "--text-file", "--ids-file")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_mlx(tmp_path_factory.mktemp("model"))
    (made / "mine.toml").write_text("[memory]\ncontext = 200\n")
    write_mlx_adapter(made / "adapter", mlx_pairs({"model.layers.2.mlp.up_proj": (128, 64)}))
    (made / "prompt").write_text("hi")
    (made / "ids.json").write_text("[5, 6, 7]")
    (made / "schema.json").write_text('{"type": "boolean"}')
    (made / "tools.json").write_text('[{"type": "function", "function": {"name": "add"}}]')
    edit_json(made / "tokenizer_config.json", chat_template=TEMPLATE)
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    marks = ("python_start", "python_end", "output_start", "output_end")
    tokenizer.add_special_tokens([f"<|{mark}|>" for mark in marks])  # for --calculator
    tokenizer.save(str(made / "tokenizer.json"))
    (made / "rows.jsonl").write_text('{"prompt": "hi"}\n')
    return made


def arguments(folder: Path, mode: str, option: Option) -> list[str]:
    """A whole command line of the mode with the option, and what a run then needs."""
    flags = ["--model", "{folder}", *MODE_FLAGS[mode]]
    if MODES[mode].answers and option.name != "--max-tokens":
        flags += ["--max-tokens", "4"]
    if MODES[mode].answers and option.name != "--seed":
        flags += ["--seed", "3"]
    if option.name in ("--prompt-file", "--model", "--prompt") and option.name in flags:
        at = flags.index(option.name)
        del flags[at : at + 2]
    elif option.name == "--prompt-file" and "--prompt" in flags:
        at = flags.index("--prompt")
        del flags[at : at + 2]
    elif mode == "score" and option.name in TEXTS:
        flags = flags[:-2]
    if option.name not in flags:
        flags.append(option.name)
        if option.name in VALUES:
            flags.append(VALUES[option.name])
    if mode in option.modes:
        flags += BESIDE.get(option.name, [])
    return [flag.replace("{folder}", str(folder)) for flag in flags]


def output_of(mode: str, out: str) -> str:
    """The text of the answers, whatever shows it."""
    if mode in ("text", "stream", "chat"):
        return out if not out.startswith('{"text"') else f"{json.loads(out)['text']}\n"
    lines = [json.loads(line) for line in out.splitlines()]
    if mode in ("json", "batch"):
        texts = [choice["text"] for choice in lines[0].get("choices", lines)]
    else:
        deltas = [line for line in lines if line["type"] == "delta"]
        choices = sorted({line.get("choice", 0) for line in lines})
        texts = [
            "".join(line["text"] for line in deltas if line.get("choice", 0) == choice)
            for choice in choices
        ]
    return "".join(
        f"--- {index + 1}/{len(texts)}\n{text}\n" if index else f"{text}\n"
        for index, text in enumerate(texts)
    )


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_works_in_a_mode_or_is_refused(
    option: Option,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = set()
    for mode in MODES:
        if option.name in ("--stream", "--json") and MODES[mode].answers:
            if mode not in ("chat", "batch"):
                continue  # it makes the mode, or another of it
        elif option.name in ("--stream", "--json") and mode in option.modes:
            continue
        if option.name in ("--chat", "--batch", "--score"):
            continue
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi")))
        code = main(arguments(folder, mode, option))
        out, err = capfd.readouterr()
        if mode in option.modes:
            assert code == 0, (mode, err)
            if MODES[mode].answers and option.name not in ("--output", "--force"):
                answers.add(output_of(mode, out))
        else:
            assert code == 2, mode
            assert out == "" and len(err.splitlines()) == 1
            assert err.startswith(f"error: {option.name}: does not go with"), err
    assert len(answers) <= 1  # the same text in every mode


def test_the_table_has_every_flag() -> None:
    flags = {
        next((name for name in action.option_strings if name.startswith("--")), "")
        for action in parser()._actions
    }
    assert flags - IN_PLACE_OF_A_RUN == {option.name for option in OPTIONS}
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)
    assert {option.key for option in OPTIONS} >= {flag.key for flag in GENERATE_FLAGS.values()}
    assert set(MODE_FLAGS) == set(MODES)


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        (["--logprobs", "0"], "--logprobs"),
        (["--n", "2", "--stream"], "--n"),
        (["-n", "2", "--stream"], "--n"),
        (["--set", "generate.logprobs=1"], "--set generate.logprobs (--logprobs)"),
        (["--set", "generate.n=2", "--stream"], "--set generate.n (--n)"),
        (["--config", "{folder}/two.toml", "--stream"], "two.toml:2 (--n)"),
    ],
)
def test_what_can_t_be_shown_is_refused_before_the_model_is_looked_for(
    flags: list[str], where: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "two.toml").write_text("[generate]\nn = 2\n")
    flags = [flag.replace("{folder}", str(folder)) for flag in flags]
    assert main(["--model", "nowhere", "--prompt", "hi", *flags]) == 2
    err = capsys.readouterr().err
    assert f"{where}: does not go with" in err and "add --json" in err


def test_a_file_s_generate_table_is_not_meant_for_a_score(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "two.toml").write_text("[generate]\nn = 2\ntemperature = 0.3\n")
    score = ["--model", str(folder), "--score", "--ids-file", str(folder / "ids.json")]
    assert main([*score, "--config", str(folder / "two.toml"), "--quiet"]) == 0
    assert main([*score, "--set", "generate.temperature=1"]) == 2
    assert "--set generate.temperature" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "head"), [("README.md", "option"), ("README.zh-CN.md", "选项")])
def test_the_readmes_show_the_table(name: str, head: str) -> None:
    assert markdown(head) in (ROOT / name).read_text("utf-8")
