"""Reading `--config` and `--set`: what is found, what paths mean, and the place of every fault."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

import configs
from configs.errors import ConfigError
from configs.loader import load_toml, read_layers, read_sets, shipped

FOLDER = Path(configs.__file__).parent


def write(folder: Path, text: str) -> str:
    file = folder / "my.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_a_name_is_a_shipped_file_and_says_its_lines() -> None:
    layer = load_toml("demo")
    assert layer["model.source"].value == str(FOLDER / "demo_model")
    assert layer["model.source"].origin == "demo.toml:6"


def test_a_path_is_a_file_and_says_its_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "[generate]\n\nseed = 5\n")
    layer = load_toml(path)
    assert layer["generate.seed"] == (5, f"{path}:3")


@pytest.mark.parametrize("name", ["./demo", "demo.toml", "nowhere/demo.toml"])
def test_what_looks_like_a_path_is_no_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_toml(name)
    assert caught.value.exit_code == 2
    assert caught.value.where == name.removeprefix("./")


def test_an_unknown_name_lists_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError) as caught:
        load_toml("qwen3_8")
    assert caught.value.mend.startswith("did you mean qwen3_8b? ")
    assert all(name in caught.value.mend for name in shipped())


def test_paths_count_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    text = '[model]\nsource = "../hf"\npath = "out"\n[tokenizer]\nchat_template = "t.jinja"\n'
    write(tmp_path / "sub", text)
    layer = load_toml("sub/my.toml")
    assert layer["model.source"].value == str(tmp_path / "sub" / ".." / "hf")
    assert layer["model.path"].value == tmp_path / "sub" / "out"
    assert layer["tokenizer.chat_template"].value == tmp_path / "sub" / "t.jinja"


@pytest.mark.parametrize("source", ["Qwen/Qwen3-8B", "gpt2", "/abs/olute"])
def test_a_source_that_is_a_hub_id_or_absolute_stays(tmp_path: Path, source: str) -> None:
    layer = load_toml(write(tmp_path, f'[model]\nsource = "{source}"\n'))
    assert layer["model.source"].value == source


def test_home_folders_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    layer = load_toml(write(tmp_path, '[model]\nsource = "~/hf"\npath = "~/mlx"\n'))
    assert layer["model.source"].value == "/home/me/hf"
    assert layer["model.path"].value == Path("/home/me/mlx")


def test_other_programs_tables_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, "[mlx_grpo]\nlearning_rate = 1e-6\nanything.at = [1]\n")
    assert load_toml(path) == {}


def test_rules_are_read_from_their_own_tables(tmp_path: Path) -> None:
    texts = ("pattern = 'a'\nbits = 6\n", "pattern = 'b'\nkeep = true\n")
    path = write(tmp_path, "".join(f"[[convert.layers]]\n{text}" for text in texts))
    rules = load_toml(path)["convert.layers"].value
    assert [(rule.pattern, rule.bits, rule.keep) for rule in rules] == [  # type: ignore[attr-defined]
        ("a", 6, False),
        ("b", None, True),
    ]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("generate.temperature=0.2", "generate.temperature", 0.2),
        ("generate.seed = 7", "generate.seed", 7),
        ("convert.quantize=true", "convert.quantize", True),
        ("convert.mode=mxfp4", "convert.mode", "mxfp4"),
        ('convert.mode="mxfp4"', "convert.mode", "mxfp4"),
        ("model.source=Qwen/Qwen3-8B", "model.source", "Qwen/Qwen3-8B"),
        ("generate.system=Be brief = good.", "generate.system", "Be brief = good."),
        ("generate.system=1\nseed = 5", "generate.system", "1\nseed = 5"),
        ("generate.stop=END", "generate.stop", ("END",)),
        ('generate.stop=["a", "b"]', "generate.stop", ("a", "b")),
        ("memory.limit=12GB", "memory.limit", 12 * 10**9),
        ("memory.limit=1000", "memory.limit", 1000),
    ],
)
def test_set_takes_tomls_values_and_bare_words(text: str, key: str, value: object) -> None:
    assert read_sets([text]) == {key: (value, f"--set {key}")}


def test_of_two_sets_for_one_key_the_last_holds() -> None:
    assert read_sets(["generate.seed=1", "generate.seed=2"])["generate.seed"].value == 2


def test_set_takes_rules() -> None:
    rules = read_sets(['convert.layers=[{pattern="a", keep=true}]'])["convert.layers"].value
    assert rules[0].keep  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generate.seed", '--set: "generate.seed" sets nothing; write table.key=value'),
        ("generate.temprature=1", "--set generate.temprature: unknown key; did you mean"),
        ("generate.bits=4", "--set generate.bits: unknown key; did you mean convert.bits?"),
        ("genrate.seed=4", "--set genrate.seed: unknown key; did you mean generate.seed?"),
        ("bits=4", "--set bits: unknown key; known are model, convert,"),
        ("mlx_grpo.seed=4", "--set mlx_grpo.seed: unknown key; did you mean generate.seed?"),
        ("convert.bits=7", "--set convert.bits: 7 is not allowed; it takes 2, 3, 4, 5, 6 or 8"),
        ("convert.bits=four", '--set convert.bits: "four" is not allowed; it takes'),
        ("generate.temperature=nan", "--set generate.temperature: nan is not allowed"),
        ("convert.quantize=yes", '--set convert.quantize: "yes" is not allowed; it takes true'),
        ("generate.stop=[END]", '--set generate.stop: "[END]" is not TOML; quote it once more'),
        ("generate.stop=" + "[" * 1000, "--set generate.stop: "),
        ('convert.layers=[{pattern="a", bits=7}]', "--set convert.layers: [0].bits: 7 is not"),
    ],
)
def test_set_refuses(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sets([text])
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


def test_all_that_the_command_line_says_becomes_layers(tmp_path: Path) -> None:
    path = write(tmp_path, "[generate]\nseed = 5\n")
    layers = read_layers(Namespace(config=path, set=["generate.top_k=3"], json=True))
    resolved = layers.resolve()
    assert (resolved.generate.seed, resolved.generate.top_k) == (5, 3)
    assert read_layers(Namespace(config=None, set=[])).resolve().generate.seed is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[generate]\nlogit_bias = { 5 = 1, x = 2 }\n", 2),
        ("[generate]\nseed = 1\n[generate.logit_bias]\n5 = 1\nx = 2\n", 3),
        ("[generate]\nlogit_bias.x = 5\n", 2),
    ],
)
def test_a_wrong_bias_is_told_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_toml(path)
    assert caught.value.where == f"{path}:{line}"


def test_biases_may_be_a_table(tmp_path: Path) -> None:
    layer = load_toml(write(tmp_path, "[generate.logit_bias]\n5 = 1\n4 = -2.5\n"))
    assert layer["generate.logit_bias"].value == ((4, -2.5), (5, 1.0))
