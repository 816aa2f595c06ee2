"""Cases 40 to 42 for TOML files: each bad file is refused in one line, with file and line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.loader import LARGEST_FILE, load_toml
from configs.resolve import Layers

# (what the file holds, the line at fault, how the message goes on)
BAD: list[tuple[str, int, str]] = [
    # 40: unknown keys and tables
    ("[generate]\ntemprature = 1\n", 2, "generate.temprature: unknown key; did you mean generate."),
    ("[generate]\n\n# x\nbits = 4\n", 4, "generate.bits: unknown key; did you mean convert.bits?"),
    ("[convert]\nbits = 4\n[genrate]\nseed = 1\n", 3, "genrate: unknown table; did you mean gen"),
    ("seed = 1\n", 1, "seed: unknown table; known are model, convert, tokenizer, generate, memory"),
    ("convert = { quantize = true, bts = 4 }\n", 1, "convert.bts: unknown key; did you mean conv"),
    ("[convert.bits]\nx = 1\n", 1, "convert.bits: a table is not allowed; it takes 2, 3, 4"),
    ("[model]\nx.y = 1\n", 2, "model.x: unknown key"),
    (
        '[[convert.layers]]\npattern = "a"\nkeep = true\n[[convert.layers]]\nbitz = 4\n',
        5,
        "convert.layers[1].bitz: unknown key; did you mean bits?",
    ),
    (
        '[convert]\nlayers = [\n  {pattern = "a", bitz = 4},\n]\n',
        3,
        "convert.layers[0].bitz: unknown",
    ),
    # 41: values
    ("[convert]\nquantize = true\nbits = 7\n", 3, "convert.bits: 7 is not allowed; it takes 2, 3,"),
    ("[convert]\ngroup_size = 0\n", 2, "convert.group_size: 0 is not allowed; it takes 16, 32, 64"),
    (
        "[generate]\ntemperature = nan\n",
        2,
        "generate.temperature: nan is not allowed; it takes a f",
    ),
    ("[generate]\ntemperature = -inf\n", 2, "generate.temperature: -inf is not allowed"),
    (
        "[generate]\ntop_p = 0\n",
        2,
        "generate.top_p: 0 is not allowed; it takes a finite number abo",
    ),
    ('[generate]\nmax_tokens = "512"\n', 2, 'generate.max_tokens: "512" is not allowed'),
    ("[generate]\nmax_tokens = true\n", 2, "generate.max_tokens: true is not allowed"),
    ("[generate]\nseed = 1979-05-27\n", 2, "generate.seed: 1979-05-27 is not allowed"),
    (
        "[convert]\nmethod = 'best'\n",
        2,
        'convert.method: "best" is not allowed; it takes search, rtn or calibrated',
    ),
    ("convert = 4\n", 1, "convert: 4 is not a table; write [convert]"),
    ("[[convert]]\nbits = 4\n", 1, "convert: a list is not a table"),
    (
        '\n[[convert.layers]]\npattern = "a"\nbits = 7\n',
        4,
        "convert.layers[0].bits: 7 is not allow",
    ),
    ("[[convert.layers]]\nbits = 4\n", 1, "convert.layers[0]: the rule has no pattern"),
    ('[[convert.layers]]\npattern = "a"\n', 1, "convert.layers[0]: the rule says nothing"),
    ('[model]\npath = "a\\u0000b"\n', 2, "model.path: "),
    (
        '[model]\nname = "../../etc"\n',
        2,
        'model.name: "../../etc" is not allowed; it takes a plain',
    ),
    ('[model]\nsource = "~nobody-of-this-name/x"\n', 2, "model.source: "),
    # 42: no TOML
    ("[generate]\nseed = 1\nseed = 2\n", 3, "a key that is there already"),
    ("[generate]\n[model]\n[generate]\n", 3, "not TOML: Cannot declare ('generate',) twice"),
    ("[generate]\nseed = \n", 2, "not TOML: Invalid value"),
    ("[generate\n", 1, "not TOML: "),
    ("[generate]\nstop = [\n", 2, "not TOML: "),
    ("just a text file\n", 1, "not TOML: "),
    ("[generate]\nseed = " + "[" * 100_000 + "\n", 2, "nested too deep"),
    ("\n\na = " + "[" * 100 + "]" * 100 + "\n", 3, "nested too deep"),
    ("\na = " + "{a = " * 100 + "1" + "}" * 100 + "\n", 2, "nested too deep"),
    ("\n[" + ".".join(["a"] * 5000) + "]\n", 2, "nested too deep"),
]


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        Layers(toml=load_toml(str(path))).resolve()
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(("text", "line", "message"), BAD, ids=[text[:40] for text, _, _ in BAD])
def test_refused_with_file_and_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text, encoding="utf-8")
    found = refusal(file)
    assert found.startswith(f"{file}:{line}: {message}")
    assert "; " in found
    assert len(found) < len(str(file)) + 300


@pytest.mark.parametrize(
    ("data", "place", "message"),
    [
        (b"[generate]\n# caf\xe9\nseed = 1\n", ":2", "not UTF-8"),
        ("[generate]\nseed = 1\n".encode("utf-16"), ":1", "not UTF-8"),
        ("[generate]\nseed = 1\n".encode("utf-8-sig"), ":1", "a byte order mark"),
        (b"seed = \xed\xa0\x80\n", ":1", "not UTF-8"),
        (b"\x00\x01\x02", ":1", "not TOML"),
        (b"[generate]\rseed = 1\r", ":1", "not TOML"),
        (b"[generate]\nseed = " + b"9" * 5000, "", "a number with too many digits"),
        (b"#" * (LARGEST_FILE + 1), "", f"more than {LARGEST_FILE} bytes"),
    ],
)
def test_bytes_that_are_no_toml_text(tmp_path: Path, data: bytes, place: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(data)
    assert refusal(file).startswith(f"{file}{place}: {message}")


def test_carriage_returns_do_not_shift_lines(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(b'[generate]\r\nsystem = """a\r\nb"""\r\nbad = 1\r\n')
    assert refusal(file).startswith(f"{file}:4: generate.bad: unknown key")


def test_no_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    assert refusal(tmp_path / "none.toml").startswith(f"{tmp_path / 'none.toml'}: no such file; ")
    for name in ("folder.toml", "pipe.toml"):  # opening the pipe would wait for ever
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: not a file; ")


def test_a_name_too_long_and_a_file_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / ("x" * 5000 + ".toml"), tmp_path / "file" / "a.toml"):
        assert ": can't be read: " in refusal(path)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.touch(mode=0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root reads everything
    try:
        message = refusal(file)
    finally:
        os.seteuid(user)
    assert "can't be read: Permission denied" in message


@pytest.mark.parametrize(
    "unit",
    ['\\"""\n', '\\"', '"', "'''\n", "a = 1\n", "[a]\n", "1,", "[", "{a=", "a.", "[a.a.a.a.a.a]\n"],
)
def test_hostile_texts_take_bounded_time(tmp_path: Path, unit: str) -> None:
    file = tmp_path / "bad.toml"
    for prefix in ("", "a = [", 'a = """', "a = "):
        text = (prefix + unit * LARGEST_FILE)[: LARGEST_FILE - 1]
        file.write_text(text, encoding="utf-8")
        started = time.process_time()
        refusal(file)
        assert time.process_time() - started < 10
