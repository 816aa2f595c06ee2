"""The command line: flags of schema keys, wrong usage in one line, and the help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs import __version__
from configs.arguments import Parser, add_common, add_key
from configs.errors import UsageError
from configs.loader import read_layers
from configs.resolve import Resolved


@pytest.fixture
def parser() -> Parser:
    made = Parser("convert", "Carry a model across.", "convert --hf-path Qwen/Qwen3-8B -q")
    group = made.group("quantization")
    add_key(group, "-q", "--quantize", key="convert.quantize", help="quantize 100% of it")
    add_key(group, "--bits", key="convert.bits", help="bits per weight")
    add_key(group, "--group-size", key="convert.group_size", help="weights to a scale")
    add_key(group, "--mode", key="convert.mode", help="quantization mode")
    add_key(group, "--max-shard-size", key="convert.max_shard_size", help="largest file")
    add_key(group, "--mlx-path", "--output-dir", key="model.path", help="folder to write")
    add_key(group, "--temperature", key="generate.temperature", help="how daring")
    add_key(group, "--system", key="generate.system", help="system message", metavar="S")
    add_key(group, "--stop", key="generate.stop", help="end before this text")
    add_key(group, "--top-k", key="generate.top_k", help="how many")
    add_key(group, "-n", "--n", key="generate.n", help="answers")
    add_key(group, "--logit-bias", key="generate.logit_bias", help="bias")
    add_key(group, "--stop-token", key="generate.stop_token", help="end at this token")
    group.add_argument("--force", action="store_true", help="replace")
    group.add_argument("--count", type=int, choices=[1, 2])
    add_common(made)
    return made


def resolved(parser: Parser, *argv: str) -> Resolved:
    return read_layers(parser.parse_args(argv)).resolve()


@pytest.mark.parametrize(
    ("argv", "key", "value", "origin"),
    [
        (["--bits", "3"], "convert.bits", 3, "--bits"),
        (["--bits=3"], "convert.bits", 3, "--bits"),
        (["--bits", "3", "--bits", "8"], "convert.bits", 8, "--bits"),
        (["-q"], "convert.quantize", True, "--quantize"),
        (["--mode", "mxfp4"], "convert.mode", "mxfp4", "--mode"),
        (["--max-shard-size", "1GiB"], "convert.max_shard_size", 2**30, "--max-shard-size"),
        (["--max-shard-size", "1000"], "convert.max_shard_size", 1000, "--max-shard-size"),
        (["--output-dir", "x/y"], "model.path", Path("x/y"), "--output-dir"),
        (["--temperature", "1e-1"], "generate.temperature", 0.1, "--temperature"),
        (["--system", ""], "generate.system", "", "--system"),
        (["--stop", "a", "--stop", "b c"], "generate.stop", ("a", "b c"), "--stop"),
        (["-n", "3"], "generate.n", 3, "--n"),
        (
            ["--logit-bias", "9=-1", "--logit-bias=5=2.5", "--logit-bias", "9=4"],
            "generate.logit_bias",
            ((5, 2.5), (9, 4.0)),
            "--logit-bias",
        ),
        (
            ["--stop-token", "<end>", "--stop-token", "151645"],
            "generate.stop_token",
            ("<end>", 151645),
            "--stop-token",
        ),
        ([], "convert.bits", 4, "default"),
    ],
)
def test_flags_of_keys(parser: Parser, argv: list[str], key: str, value: Any, origin: str) -> None:
    found = resolved(parser, *argv)
    table, name = key.split(".")
    assert getattr(getattr(found, table), name) == value
    assert found.origin(key) == origin


def test_flags_win_over_set_and_file(parser: Parser, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[generate]\nstop = ["x"]\ntemperature = 0.1\nseed = 1\n', encoding="utf-8")
    argv = ["--set", "generate.temperature=0.2", "--temperature", "0.3", "--stop", "y"]
    found = resolved(parser, "--config", str(file), "--set", "generate.seed=2", *argv).generate
    assert (found.temperature, found.seed, found.stop) == (0.3, 2, ("y",))


REFUSED: list[tuple[list[str], str]] = [
    (["--bts"], "--bts: unknown option; did you mean --bits?"),
    (["--bts", "3"], "--bts: unknown option; did you mean --bits?"),
    (["--bts=3"], "--bts: unknown option; did you mean --bits?"),
    (["--bit", "3"], "--bit: unknown option; did you mean --bits?"),  # no abbreviations
    (["--temp", "1"], "--temp: unknown option; did you mean --temperature?"),
    (["--sys", "1"], "--sys: unknown option; did you mean --system?"),
    (["--top-k", "9999999999"], "--top-k: 9999999999 is not allowed; it takes a whole number of at "
     "least 0 and at most 2147483647"),
    (["--top-k", "9" * 5000], "--top-k: 9999"),
    (["--temperature", "1e300"], "--temperature: 1e300 is not allowed; it takes a finite number of "
     "at least 0 and at most 100"),
    (["--logit-bias", "5"], "--logit-bias: 5 is not allowed; it takes a token id and a number from "
     "-100 to 100 for it"),
    (["--logit-bias", "5=nan"], "--logit-bias: 5=nan is not allowed; it takes a token id"),
    (["--logit-bias", "a=1"], "--logit-bias: a=1 is not allowed; it takes a token id"),
    (["--stop-token", ""], '--stop-token: "" is not allowed; it takes tokens, by their text or th'),
    (["--zzzzz"], "--zzzzz: unknown option; known are --quantize, "),
    (["-z"], "-z: unknown option; known are "),
    (["stray"], '"stray": no flag takes this; see convert --help'),
    (["-"], '"-": no flag takes this; see convert --help'),
    (["--bits", "7"], "--bits: 7 is not allowed; it takes 2, 3, 4, 5, 6 or 8"),
    (["--bits", "four"], "--bits: four is not allowed; it takes 2, 3, 4, 5, 6 or 8"),
    (["--bits"], "--bits: expected one argument; a value that starts with a dash is written --b"),
    (["--system", "-x"], "--system: expected one argument; a value that starts with a dash is wr"),
    (["--group-size", "0"], "--group-size: 0 is not allowed; it takes 16, 32, 64 or 128"),
    (["--mode", "int4"], '--mode: "int4" is not allowed; it takes affine, mxfp4, nvfp4 or mxfp8'),
    (["--max-shard-size", "5XB"], '--max-shard-size: "5XB" is not allowed; it takes a size suc'),
    (["--output-dir", ""], '--output-dir: "" is not allowed; it takes a path'),
    (["--temperature", "-1"], "--temperature: -1 is not allowed; it takes a finite number of at l"),
    (["--temperature", "nan"], "--temperature: nan is not allowed; it takes a finite number of at"),
    (["--stop", ""], '--stop: "" is not allowed; it takes a list of texts, none of them empty'),
    (["--system", "\udcff"], "--system: this is not valid Unicode; write it as UTF-8 text"),
    (["--quantize=yes"], "--quantize: ignored explicit argument 'yes'; see convert --help"),
    (["--quiet", "--verbose"], "--verbose: not allowed with argument --quiet; see convert --help"),
    (["--count", "3"], "--count: invalid choice: 3 (choose from 1, 2); see convert --help"),
    (["--count", "x"], "--count: invalid int value: 'x'; see convert --help"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_wrong_usage_names_the_flag_and_what_is_allowed(
    parser: Parser, argv: list[str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parser.parse_args(argv)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


def test_a_missing_required_flag_is_wrong_usage(parser: Parser) -> None:
    parser.add_argument("--need", required=True)
    with pytest.raises(UsageError, match="--need"):
        parser.parse_args([])


def test_the_common_flags(parser: Parser) -> None:
    args = parser.parse_args([])
    assert (args.config, args.set, args.show_config) == (None, [], False)
    assert not any((args.json, args.quiet, args.verbose, args.debug))
    args = parser.parse_args(["--set", "a.b=1", "--set", "c.d=2", "--json", "--debug", "--quiet"])
    assert (args.set, args.json, args.debug, args.quiet) == (["a.b=1", "c.d=2"], True, True, True)
    assert parser.parse_args([]).set == []  # the list is not shared between calls


def test_the_help_is_grouped_with_defaults_and_an_example(
    parser: Parser, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for heading in ("quantization:", "settings:", "output:", "example:"):
        assert f"\n{heading}\n" in text
    for line in (
        "  -q, --quantize        quantize 100% of it\n",
        "  --bits 2|3|4|5|6|8    bits per weight (default: 4; mxfp8 8)\n",
        "weights to a scale (default: 64; mxfp4 32, nvfp4 16, mxfp8 32)\n",
        "  --max-shard-size SIZE\n                        largest file (default: 5GB)\n",
        "  --temperature X       how daring (default: 0.7)\n",
        "  --system S            system message\n",
        "  convert --hf-path Qwen/Qwen3-8B -q\n",
    ):
        assert line in text
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.parametrize(("columns", "widest"), [("60", 60), ("400", 100), ("wide", 100)])
def test_the_help_keeps_to_the_terminal(
    parser: Parser, monkeypatch: pytest.MonkeyPatch, columns: str, widest: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    longest = max(len(line) for line in parser.format_help().splitlines())
    assert widest - 25 < longest <= widest


def test_the_version(parser: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"convert (mlx-ferry) {__version__}\n"
