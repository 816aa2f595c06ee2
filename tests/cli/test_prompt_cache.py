"""`--prompt-cache FILE`: made and reused in every mode that has it, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.cli import main
from tests.factories_adapters import mlx_pairs, write_mlx_adapter
from tests.factories_inference import write_mlx

HEAD = "the quick brown fox jumps over the lazy dog and the quick brown fox sleeps all day " * 2
SAYS = ["--max-tokens", "12", "--temperature", "0", "--device", "cpu", "--raw"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def folder_of(folders: Path, kind: str) -> Path:
    made = folders / kind
    return made if made.exists() else write_mlx(made, kind)


def answer(
    capfd: pytest.CaptureFixture[str], folder: Path, prompt: str, *flags: str
) -> dict[str, Any]:
    assert main(["--model", str(folder), "--prompt", prompt, *SAYS, "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mamba", "kv_bits", "kv_start"])
def test_made_and_reused(
    kind: str, folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = {"kv_bits": ["--kv-bits", "8"], "kv_start": ["--kv-bits", "8", "--kv-start", "20"]}
    more = flags.get(kind, [])
    folder = folder_of(folders, "llama" if more else kind)
    file = tmp_path / "cache"
    kept = [*more, "--prompt-cache", str(file)]
    fresh = answer(capfd, folder, HEAD, *more)
    first = answer(capfd, folder, HEAD, *kept)
    assert first["text"] == fresh["text"] and first["usage"]["cached_tokens"] == 0
    assert [*tmp_path.iterdir()] == [file]
    data = file.read_bytes()
    again = answer(capfd, folder, HEAD, *kept)
    assert again["text"] == fresh["text"]
    assert again["usage"]["cached_tokens"] == again["usage"]["prompt_tokens"] - 1
    longer = answer(capfd, folder, f"{HEAD} and then", *kept)
    assert longer["text"] == answer(capfd, folder, f"{HEAD} and then", *more)["text"]
    assert longer["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 2
    assert file.read_bytes() == data  # it is never changed


def test_the_part_that_is_alike_is_reused(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, kept = folder_of(folders, "llama"), ["--prompt-cache", str(tmp_path / "cache")]
    answer(capfd, folder, f"{HEAD} one question", *kept)
    other = answer(capfd, folder, f"{HEAD} another", *kept)
    assert other["text"] == answer(capfd, folder, f"{HEAD} another")["text"]
    assert other["usage"]["cached_tokens"] > 20


def test_streams_and_several_answers(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, file = folder_of(folders, "llama"), tmp_path / "cache"
    several = ["-n", "2", "--temperature", "1", "--seed", "5"]
    asked = ["--model", str(folder), "--prompt", HEAD, *SAYS]
    found = []
    for flags in ([], ["--prompt-cache", str(file)], ["--prompt-cache", str(file)]):
        assert main([*asked, *several, *flags]) == 0
        assert main([*asked, "--stream", "--seed", "5", *flags]) == 0
        found.append(capfd.readouterr().out)
    assert len(set(found)) == 1


def test_the_rows_of_a_batch_begin_with_it(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, file = folder_of(folders, "llama"), tmp_path / "cache"
    rows = tmp_path / "rows.txt"
    rows.write_text("".join(f"{HEAD} {word}\n" for word in ("one", "two two", "three")))
    asked = ["--model", str(folder), "--batch", str(rows), *SAYS]
    found = []
    for flags in ([], ["--prompt-cache", str(file)], ["--prompt-cache", str(file)]):
        assert main([*asked, *flags]) == 0
        found.append([json.loads(line) for line in capfd.readouterr().out.splitlines()])
    texts = [[row["text"] for row in each] for each in found]
    assert texts[0] == texts[1] == texts[2]
    cached = [row["usage"]["cached_tokens"] for row in found[2]]
    assert min(cached) == max(cached) > 20 and found[1][0]["usage"]["cached_tokens"] == 0
    # A single prompt that begins so uses it too.
    one = answer(capfd, folder, f"{HEAD} four", "--prompt-cache", str(file))
    assert one["usage"]["cached_tokens"] >= cached[0] - 2


def refused(capfd: pytest.CaptureFixture[str], folder: Path, *flags: str) -> str:
    assert main(["--model", str(folder), *SAYS, *flags]) in (1, 2)
    out, err = capfd.readouterr()
    assert out.strip() == ""
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def test_another_s_cache_is_refused_with_the_way_out(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, file = folder_of(folders, "llama"), tmp_path / "cache"
    kept = ["--prompt-cache", str(file)]
    answer(capfd, folder, HEAD, *kept)
    data = file.read_bytes()
    same = ["--prompt", HEAD, *kept]
    other = write_mlx(tmp_path / "other", "llama", seed=1)
    for line, name in (
        (refused(capfd, other, *same), "model"),
        (refused(capfd, folder, *same, "--dtype", "float16"), "dtype"),
        (refused(capfd, folder, *same, "--kv-bits", "8"), "kv_bits"),
        (refused(capfd, folder, *same, "--load-bits", "8"), "load_bits"),
    ):
        assert f"{file}: is of another {name}; give another file, or remove it" in line
    line = refused(capfd, folder, "--prompt", "something else, and quite long too", *kept)
    assert "begins otherwise than the prompt: " in line and "remove it" in line
    rows = tmp_path / "rows.txt"
    rows.write_text("something else, and quite long too\n")
    assert "begins otherwise" in refused(capfd, folder, "--batch", str(rows), *kept)
    assert file.read_bytes() == data
    file.write_bytes(data[:-3])
    assert str(file) in refused(capfd, folder, *same)
    file.write_bytes(b"{}")
    assert str(file) in refused(capfd, folder, *same)


def test_a_cache_made_with_other_settings_is_refused(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, file = folder_of(folders, "llama"), tmp_path / "cache"
    pairs = mlx_pairs({"model.layers.1.mlp.up_proj": (128, 64)})
    added = ["--adapter", str(write_mlx_adapter(tmp_path / "adapter", pairs))]
    asked = ["--prompt", HEAD, "--prompt-cache", str(file)]
    answer(capfd, folder, HEAD, "--kv-bits", "8", "--kv-start", "20", *asked[2:])
    packed = ["--kv-bits", "8", "--kv-start"]
    assert "is of another kv_start" in refused(capfd, folder, *asked, *packed, "24")
    file.unlink()
    answer(capfd, folder, HEAD, *added, *asked[2:])
    assert "is of another adapter" in refused(capfd, folder, *asked)
    file.unlink()
    answer(capfd, folder, HEAD, *asked[2:])
    assert "is of another adapter" in refused(capfd, folder, *asked, *added)


def test_a_cache_of_positions_that_are_scaled_otherwise_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scaling = {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0 + 0.1 * n for n in range(16)],
        "long_factor": [2.0 + 0.5 * n for n in range(16)],
    }
    rope = {"rope_scaling": scaling, "rope_parameters": scaling | {"rope_theta": 10_000.0}}
    folder = write_mlx(tmp_path / "model", max_position_embeddings=512, **rope)
    file = tmp_path / "cache"
    short = ["--prompt", HEAD[:40], "--max-tokens", "4", "--prompt-cache", str(file)]
    answer(capfd, folder, HEAD[:40], *short[2:], "--context", "60")
    line = refused(capfd, folder, "--prompt", HEAD[:40] * 9, *short[2:], "--context", "400")
    assert "is of another position scaling" in line


def test_a_recurrent_cache_that_can_t_be_cut_is_refused(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, kept = folder_of(folders, "mamba"), ["--prompt-cache", str(tmp_path / "cache")]
    answer(capfd, folder, f"{HEAD} one question", *kept)
    line = refused(capfd, folder, "--prompt", f"{HEAD} another", *kept)
    assert "can't be cut there" in line and "by a prompt of what is shared alone" in line


def test_rows_that_do_not_begin_alike_and_bad_places(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, file = folder_of(folders, "llama"), tmp_path / "cache"
    rows = tmp_path / "rows.txt"
    rows.write_text("hello there\nthe fox\n")
    line = refused(capfd, folder, "--batch", str(rows), "--prompt-cache", str(file))
    assert "--prompt-cache: the rows begin alike for 0 tokens" in line and not file.exists()
    for place, what in ((tmp_path, "is a folder"), (tmp_path / "no" / "cache", "has no folder")):
        line = refused(capfd, Path("nowhere"), "--prompt", "hi", "--prompt-cache", str(place))
        assert what in line


def test_the_layers_that_kv_bits_leaves_are_named(
    folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", str(folder_of(folders, "gemma3_text")), "--prompt", "hi", *SAYS]
    assert main([*asked, "--kv-bits", "8"]) == 0
    err = capfd.readouterr().err
    assert "--kv-bits leaves these layers as they are: 0, 2 (a sliding window)" in err
    assert main([*asked, "--kv-start", "8"]) == 2
    assert "add --kv-bits" in capfd.readouterr().err
