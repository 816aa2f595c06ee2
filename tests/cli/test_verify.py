"""`convert --verify DIR`: a folder that is right, and every kind of damage, from the command."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from configs.errors import SourceError
from convert.audit import audit
from convert.audit_findings import MOST_NAMED
from convert.cli import main
from tests.cli.test_convert import rewrite, weights_of
from tests.e2e.test_convert_memory import BOUND, WIDE, sparse_checkpoint
from tests.factories_models import tiny_model
from tests.faults.test_convert_faults import failing

Capture = pytest.CaptureFixture[str]
DOWN = "model.layers.0.mlp.down_proj"
ALL_CHECKS = [
    *("receipt", "files", "headers", "config", "quantization", "architecture"),
    *("tokenizer", "template", "generation", "values"),
]


def converted(source: Path, *flags: str) -> Path:
    """The source converted with the flags, `-q` if there are none."""
    out = source.parent / "out"
    given = ["--hf-path", str(source), "--mlx-path", str(out), "--quiet", *(flags or ["-q"])]
    assert main(given) == 0
    return out


def verified(folder: Path, capsys: Capture, code: int) -> dict[str, Any]:
    """What `--verify --json` prints, which must end with this exit code."""
    capsys.readouterr()
    assert main(["--verify", str(folder), "--json"]) == code
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    assert found["ok"] == (code == 0) == (not found["problems"])
    return found


def states(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in found["checks"]}


def failed(found: dict[str, Any]) -> set[str]:
    return {name for name, state in states(found).items() if state == "failed"}


def told(found: dict[str, Any], check: str) -> str:
    """The problems of one check, a line each."""
    return "\n".join(
        f"{each['where']}: {each['what']}; {each['mend']}"
        for each in found["problems"]
        if each["check"] == check
    )


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def save(folder: Path, changes: dict[str, mx.array | None], *, receipt: bool = False) -> None:
    """Put tensors in or, where None, take them out, with an index that fits."""
    weights = weights_of(folder)
    mx.eval(weights)
    for name, array in changes.items():
        weights.pop(name, None)
        if array is not None:
            weights[name] = array
    for path in folder.glob("model*"):
        path.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    if not receipt:
        (folder / "conversion.json").unlink()


@pytest.mark.parametrize(
    "flags",
    [
        ["-q"],
        ["-q", "--bits", "3", "--max-shard-size", "60KB"],
        ["-q", "--mode", "mxfp4"],
        ["-q", "--mode", "nvfp4"],
        ["-q", "--mode", "mxfp8"],
        ["--dtype", "float32"],
    ],
    ids=" ".join,
)
def test_what_convert_writes_is_right(flags: list[str], llama: Path, capsys: Capture) -> None:
    (llama / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20}')
    found = verified(converted(llama, *flags), capsys, 0)
    assert states(found) == dict.fromkeys(ALL_CHECKS, "ok")
    assert found["warnings"] == []


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
def test_a_tied_head_and_experts(kind: str, tmp_path: Path, capsys: Capture) -> None:
    out = converted(tiny_model(tmp_path / kind, kind), "-q")
    assert states(verified(out, capsys, 0)) == dict.fromkeys(ALL_CHECKS, "ok")


def test_the_text_says_what_was_checked(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    capsys.readouterr()
    assert main(["--verify", str(out)]) == 0
    text, err = capsys.readouterr()
    assert err == "" and text.splitlines()[-1] == "in order"
    first, *checks = text.splitlines()[: 1 + len(ALL_CHECKS)]
    assert first == f"{out}: an MLX folder, 4 bits in groups of 64, affine"
    assert [line.split()[:2] for line in checks] == [[name, "ok"] for name in ALL_CHECKS]
    (out / "conversion.json").unlink()
    assert main(["--verify", str(out)]) == 0
    text = capsys.readouterr().out
    assert "not checked  there is no conversion.json: hashes can't be checked" in text
    assert text.splitlines()[-1] == "in order, but not checked: receipt, files"


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_a_flipped_byte(name: str, llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    content = bytearray((out / name).read_bytes())
    content[-9] ^= 1
    (out / name).write_bytes(content)
    found = verified(out, capsys, 1)
    assert failed(found) == {"files"}
    assert told(found, "files").startswith(f"{out / name}: has sha256 ")
    assert main(["--verify", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "NOT in order: 1 problem"
    assert lines[-2] == f"problem: {told(found, 'files')}"


def test_a_shard_that_was_cut_short(llama: Path, capsys: Capture) -> None:
    out = converted(llama, "-q", "--max-shard-size", "60KB")
    shard = sorted(out.glob("model-*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 100)
    found = verified(out, capsys, 1)
    assert failed(found) == {"files", "headers"}
    assert shard.name in told(found, "files") and "truncated" in told(found, "headers")
    assert states(found)["architecture"] == "not checked"
    assert states(found)["tokenizer"] == states(found)["values"] == "ok"


def test_a_shard_that_is_missing(llama: Path, capsys: Capture) -> None:
    out = converted(llama, "-q", "--max-shard-size", "60KB")
    shard = sorted(out.glob("model-*.safetensors"))[1]
    shard.unlink()
    found = verified(out, capsys, 1)
    assert failed(found) == {"files", "headers"}
    assert shard.name in told(found, "headers")
    assert f"{shard}: is missing" in told(found, "files")


def test_a_file_that_is_missing(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    (out / "tokenizer.json").unlink()
    found = verified(out, capsys, 1)
    assert failed(found) == {"files", "tokenizer"}


def test_files_that_the_receipt_does_not_know(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    (out / ".DS_Store").write_bytes(b"x")
    (out / "notes\x1b[31m.txt").write_text("mine")
    (out / "model-extra.safetensors").write_bytes((out / "model.safetensors").read_bytes())
    found = verified(out, capsys, 0)
    warnings = "\n".join(found["warnings"])
    assert "model-extra.safetensors" in warnings and "notes" in warnings
    assert ".DS_Store" not in warnings
    assert main(["--verify", str(out)]) == 0
    text = capsys.readouterr().out
    assert "not in the receipt" in text and "\x1b" not in text


def test_bits_that_were_edited(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    (out / "conversion.json").unlink()
    change_config(out, lambda config: config["quantization"].update(bits=8))
    found = verified(out, capsys, 1)
    assert failed(found) == {"quantization"}
    assert "'lm_head': has scales [320, 2] where 8 bits" in told(found, "quantization")
    assert len(found["problems"]) == 16


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"bits": 7, "group_size": 64}, "bits 7"),
        ({"bits": True, "group_size": 64}, "bits true"),
        ({"bits": 4, "group_size": 64, "mode": "fp99"}, "fp99"),
        ([4, 64], "an array"),
        ({"bits": 4, "group_size": 64, DOWN: False}, "not quantized"),
        ({"bits": 4, "group_size": 64, DOWN: {"bits": 3}}, "3 bits"),
        ({"bits": 4, "group_size": 64, DOWN: {"bits": 9}}, "bits 9"),
        ({"bits": 4, "group_size": 64, "model.norm": {"bits": 4}}, "has no scales"),
        (None, "has no quantization"),
    ],
)
def test_quantization_that_the_tensors_are_not(
    quantization: object, words: str, llama: Path, capsys: Capture
) -> None:
    out = converted(llama)
    (out / "conversion.json").unlink()
    change_config(out, lambda config: config.update(quantization=quantization))
    assert words in told(verified(out, capsys, 1), "quantization")


def test_scales_without_a_home(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    scales = weights_of(out)[f"{DOWN}.scales"]
    save(
        out,
        {
            f"{DOWN}.biases": None,
            "model.norm.biases": scales,
            "model.stray.scales": scales,
            "lm_head.scales": weights_of(out)["lm_head.scales"].astype(mx.float32),
            "model.embed_tokens.scales": None,
        },
    )
    found = verified(out, capsys, 1)
    lines = told(found, "quantization")
    assert f"'{DOWN}': has scales, but no biases" in lines
    assert "'model.norm': has biases, but no scales" in lines
    assert "'model.stray': has scales, but no weight" in lines
    assert "'lm_head': has biases BF16" in lines
    assert "'model.embed_tokens': has biases, but no scales" in lines


@pytest.mark.parametrize("leaf", ["scales", "biases"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_scales_that_are_not_finite(leaf: str, value: float, llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    array = weights_of(out)[f"{DOWN}.{leaf}"]
    array[5, 1] = value
    save(out, {f"{DOWN}.{leaf}": array})
    found = verified(out, capsys, 1)
    assert failed(found) == {"values"}
    assert f"tensor {DOWN}.{leaf} holds infinite or NaN values" in told(found, "values")


@pytest.mark.parametrize(
    ("mode", "leaf", "code"),
    [
        ("mxfp4", "scales", 0xFF),
        ("mxfp8", "scales", 0xFF),
        ("nvfp4", "scales", 0x7F),
        ("nvfp4", "scales", 0xFF),
        ("mxfp8", "weight", 0x7F),
        ("mxfp8", "weight", 0xFF),
    ],
)
def test_codes_that_mean_nan(mode: str, leaf: str, code: int, llama: Path, capsys: Capture) -> None:
    out = converted(llama, "-q", "--mode", mode)
    array = weights_of(out)[f"{DOWN}.{leaf}"]
    array[3, 2] = code
    save(out, {f"{DOWN}.{leaf}": array})
    assert f"{DOWN}.{leaf} holds" in told(verified(out, capsys, 1), "values")


def test_codes_that_look_like_nan_are_none_elsewhere(llama: Path, capsys: Capture) -> None:
    out = converted(llama, "-q", "--mode", "mxfp4")
    weights = weights_of(out)
    scales, codes = weights[f"{DOWN}.scales"], weights[f"{DOWN}.weight"]
    scales[3, 2] = 0x7F
    codes[3, 2] = 0x7F7FFFFF
    save(out, {f"{DOWN}.scales": scales, f"{DOWN}.weight": codes})
    verified(out, capsys, 0)


def test_tensors_that_are_all_zero_are_warned_of(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    save(out, {f"{DOWN}.scales": mx.zeros_like(weights_of(out)[f"{DOWN}.scales"])})
    (warning,) = verified(out, capsys, 0)["warnings"]
    assert warning.endswith(f"every value of {DOWN}.scales is zero")


def test_many_problems_are_counted_and_few_named(llama: Path, capsys: Capture) -> None:
    out = converted(llama, "-q", "--mode", "mxfp8")
    bad: dict[str, mx.array | None] = {
        name: mx.full(array.shape, float("nan"), array.dtype)
        if array.dtype == mx.bfloat16
        else mx.full(array.shape, 0xFFFFFFFF if array.dtype == mx.uint32 else 0xFF, array.dtype)
        for name, array in weights_of(out).items()
    }
    assert len(bad) > MOST_NAMED
    save(out, bad)
    found = verified(out, capsys, 1)
    assert len(found["problems"]) == MOST_NAMED
    assert found["checks"][-1]["problems"] == len(bad)
    assert main(["--verify", str(out)]) == 1
    text = capsys.readouterr().out
    assert f"problem: and {len(bad) - MOST_NAMED} more like them" in text
    assert text.endswith(f"NOT in order: {len(bad)} problems\n")


def test_tensors_that_are_missing_or_too_many(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    save(out, {"model.norm.weight": None, "model.surprise.weight": mx.zeros((2, 2))})
    found = verified(out, capsys, 1)
    assert failed(found) == {"architecture"}
    lines = told(found, "architecture")
    assert "1 tensors of the architecture are missing ('model.norm.weight')" in lines
    assert "1 tensors are not of the architecture ('model.surprise.weight')" in lines


def test_a_config_of_another_model(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    (out / "conversion.json").unlink()
    change_config(out, lambda config: config.update(intermediate_size=512))
    found = verified(out, capsys, 1)
    assert failed(found) == {"architecture"}
    assert f"tensor {DOWN}.weight has shape [128, 32]" in told(found, "architecture")
    change_config(out, lambda config: config.update(intermediate_size=-1))
    found = verified(out, capsys, 1)
    assert failed(found) == {"config"} and states(found)["architecture"] == "not checked"
    assert "intermediate_size is -1" in told(found, "config")


def test_a_model_type_that_nobody_knows(llama: Path, capsys: Capture) -> None:
    change_config(llama, lambda config: config.update(model_type="lamma"))
    found = verified(llama, capsys, 0)
    assert states(found)["config"] == states(found)["architecture"] == "not checked"
    change_config(llama, lambda config: config.update(model_type="llama"))
    out = converted(llama)
    change_config(out, lambda config: config.update(model_type="lamma"))
    found = verified(out, capsys, 1)
    assert "'lamma' is not one mlx-lm has" in told(found, "config")


def test_an_index_that_is_stale(llama: Path, capsys: Capture) -> None:
    out = converted(llama, "-q", "--max-shard-size", "60KB")
    (out / "conversion.json").unlink()
    path = out / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.gone.weight"] = index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(index))
    found = verified(out, capsys, 1)
    assert failed(found) == {"headers"}
    assert "1 tensors of the index are in no shard" in told(found, "headers")
    assert states(found)["architecture"] == states(found)["quantization"] == "ok"


def test_a_total_size_that_is_wrong_is_only_warned_of(llama: Path, capsys: Capture) -> None:
    path = llama / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["metadata"]["total_size"] = 7
    path.write_text(json.dumps(index))
    assert "total_size as 7" in verified(llama, capsys, 0)["warnings"][0]


@pytest.mark.parametrize("special", [True, False])
def test_an_id_beyond_the_embeddings(special: bool, llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    (out / "conversion.json").unlink()
    path = out / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = {**tokenizer["added_tokens"][0], "id": 320, "content": "<x>"}
    if special:  # a text-only model of a family that also sees has one
        tokenizer["added_tokens"].append(added)
    else:
        tokenizer["model"]["vocab"]["<x>"] = 320
    path.write_text(json.dumps(tokenizer))
    found = verified(out, capsys, 0 if special else 1)
    if special:
        assert "no row for 1 special tokens: '<x>' (320)" in found["warnings"][0]
    else:
        assert failed(found) == {"tokenizer"}
        assert "has token id 320, and the embedding has 320 rows" in told(found, "tokenizer")


def test_templates_are_parsed_and_never_run(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    (out / "conversion.json").unlink()
    template = out / "chat_template.jinja"
    template.write_text(
        "{% for a in range(99999999) %}{% for b in range(99999999) %}x{% endfor %}{% endfor %}"
        "{% generation %}{{ raise_exception(''.__class__) }}{% endgeneration %}{% break %}"
    )
    found = verified(out, capsys, 0)
    assert "2 parsed, none run" in json.dumps(found["checks"])
    template.write_text("{% for a in b %}\n{{ a }\n{% endfor %}")
    found = verified(out, capsys, 1)
    assert failed(found) == {"template"} and f"{template}:2: " in told(found, "template")
    template.write_text("{% if a %}" * 3000 + "{% endif %}" * 3000)
    assert "nested too deep" in told(verified(out, capsys, 1), "template")
    template.write_bytes(b"{{ '\xff' }}")
    assert "not UTF-8" in told(verified(out, capsys, 1), "template")


def test_a_generation_config_that_infer_would_refuse(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    (out / "generation_config.json").write_text('{"temperature": -1}')
    found = verified(out, capsys, 1)
    assert failed(found) == {"generation"} and "temperature" in told(found, "generation")


def test_everything_wrong_is_told_at_once(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    norm = mx.full((128,), float("inf"), mx.bfloat16)
    save(out, {"model.norm.weight": norm, "lm_head.scales": None}, receipt=True)
    (out / "generation_config.json").write_text("[]")
    (out / "chat_template.jinja").write_text("{{")
    (out / "tokenizer.json").write_text("{}")
    found = verified(out, capsys, 1)
    assert failed(found) == {
        *("files", "quantization", "tokenizer", "template", "generation", "values"),
    }


@pytest.mark.parametrize(
    "receipt",
    [
        "",
        "[]",
        '{"shards": [], "files": {}, "tensor_bytes": 1}',
        '{"shards": [{"file": "../../x", "bytes": 1, "sha256": "00"}], "files": []}',
        '{"shards": [{"file": "/etc/passwd", "bytes": 1, "sha256": "00"}], "files": []}',
        '{"shards": [{"file": "a", "bytes": true, "sha256": "00"}], "files": []}',
        '{"shards": [{"file": "a", "bytes": -1, "sha256": "00"}], "files": []}',
        '{"shards": [{"file": "a", "bytes": 1, "sha256": "00"}], "files": []}',
        '{"shards": [{"file": 7, "bytes": 1, "sha256": "00"}], "files": []}',
        '{"shards": [[]], "files": [], "tensor_bytes": 1e400}',
        '{"shards": [], "files": [], "tensor_bytes": "many", "source": 3, "versions": []}',
        '{"shards": [], "files": [], "shards": []}',
        "[" * 100_000,
    ],
)
def test_receipts_that_are_none(receipt: str, llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    (out / "conversion.json").write_text(receipt)
    found = verified(out, capsys, 1)
    assert "receipt" in failed(found) <= {"receipt", "files"}
    assert str(out / "conversion.json") in told(found, "receipt")


def test_a_receipt_of_other_weights(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    path = out / "conversion.json"
    receipt = json.loads(path.read_text())
    receipt["shards"], receipt["tensor_bytes"] = [], 1
    path.write_text(json.dumps(receipt))
    lines = told(verified(out, capsys, 1), "files")
    assert "holds weights, and conversion.json does not list it" in lines
    assert "bytes of tensors, 1 in conversion.json" in lines


def test_a_pipe_in_place_of_a_file(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    (out / "README.md").unlink()
    os.mkfifo(out / "README.md")
    assert "is a FIFO" in told(verified(out, capsys, 1), "files")


@pytest.mark.parametrize("calls_before", [10, 12, 14])
def test_a_disk_that_fails(
    calls_before: int, llama: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half way through the pass over the files; what could be read is still told."""
    out = converted(llama, "-q", "--max-shard-size", "60KB")
    fail = failing(errno.EIO, os.preadv, calls_before)
    monkeypatch.setattr(os, "preadv", fail)
    lines = json.dumps(verified(out, capsys, 1)["problems"])
    assert "input/output error" in lines


def test_a_link_that_leaves_the_folder(llama: Path, capsys: Capture) -> None:
    out = converted(llama)
    (out / "model.safetensors").rename(out.parent / "elsewhere")
    (out / "model.safetensors").symlink_to(out.parent / "elsewhere")
    assert "leaves the folder" in told(verified(out, capsys, 1), "headers")


def test_no_folder_to_check(llama: Path, capsys: Capture) -> None:
    staging = llama.parent / ".out.ferry-staging"
    shutil.copytree(llama, staging)
    for folder, words in (
        (llama.parent / "absent", "there is no such folder"),
        (llama / "config.json", "is a file, not a folder"),
        (staging, "never finished"),
    ):
        assert main(["--verify", str(folder)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"error: {folder}: ") and words in err
        with pytest.raises(SourceError):
            audit(folder, quiet=True)


def test_an_empty_folder(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "none").mkdir()
    assert failed(verified(tmp_path / "none", capsys, 1)) == {"headers", "config", "tokenizer"}


def test_a_hugging_face_folder(llama: Path, capsys: Capture) -> None:
    found = verified(llama, capsys, 0)
    assert found["kind"] == "a Hugging Face folder"
    assert [name for name, state in states(found).items() if state != "ok"] == ["receipt", "files"]
    assert "quantization" not in states(found)
    rewrite(llama, model__norm__weight=None)
    lines = told(verified(llama, capsys, 1), "architecture")
    assert f"{llama}: 1 parameters of llama have no tensor: model.norm.weight" in lines
    rewrite(llama, model__norm__weight=mx.full((128,), float("nan")))
    assert failed(verified(llama, capsys, 1)) == {"values"}


def test_a_source_that_another_tool_quantized(llama: Path, capsys: Capture) -> None:
    rewrite(llama, {"quantization_config": {"quant_method": "awq", "bits": 4}})
    found = verified(llama, capsys, 0)
    assert states(found)["architecture"] == "not checked"
    assert "awq" in json.dumps(found["checks"])


def test_the_hubs_cache_knows_its_hashes(llama: Path, capsys: Capture) -> None:
    import hashlib

    model = llama.parent / "models--org--name"
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for path in llama.iterdir():
        content = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        large = path.suffix == ".safetensors"
        blob = model / "blobs" / (hashlib.sha256(content).hexdigest() if large else git)
        blob.write_bytes(content)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    assert states(verified(snapshot, capsys, 0))["files"] == "ok"
    for name in ("config.json", "model-00002-of-00003.safetensors"):
        blob = (snapshot / name).resolve()
        damaged = bytearray(blob.read_bytes())
        damaged[-2] ^= 0x20
        blob.write_bytes(damaged)
        assert str(snapshot / name) in told(verified(snapshot, capsys, 1), "files")


@pytest.fixture(scope="module")
def of_mlx_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that mlx_lm.convert made."""
    root = tmp_path_factory.mktemp("mlx_lm")
    script = (
        "import sys; from mlx_lm.convert import convert\n"
        "convert('llama', 'plain')\n"
        "convert('llama', 'packed', quantize=True, q_group_size=32)\n"
        "convert('llama', 'mixed', quantize=True, quant_predicate='mixed_3_6')\n"
        "convert('experts', 'fp', quantize=True, q_mode='mxfp4', q_group_size=32, q_bits=4)\n"
    )
    tiny_model(root / "llama", "llama")
    tiny_model(root / "experts", "qwen3_moe")
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, capture_output=True)
    return root


@pytest.mark.parametrize("name", ["plain", "packed", "mixed", "fp"])
def test_folders_of_mlx_lm(name: str, of_mlx_lm: Path, capsys: Capture) -> None:
    found = verified(of_mlx_lm / name, capsys, 0)
    expected = dict.fromkeys(ALL_CHECKS, "ok") | dict.fromkeys(("receipt", "files"), "not checked")
    assert states(found) == expected
    assert found["kind"].startswith("an MLX folder")


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A sparse file of zeros, larger than the bound, in one tensor."""
    total = sparse_checkpoint(tmp_path / "wide", WIDE)
    with (tmp_path / "wide" / "model.safetensors").open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        low, high = header["model.embed_tokens.weight"]["data_offsets"]
        assert high - low > BOUND and total > BOUND
        file.seek(8 + length + high - 2)
        file.write(b"\xc0\x7f")  # NaN, at the very end of the tensor
    script = (
        "import sys; from convert.audit import audit; from convert.receipt import peak_memory_bytes"
        "; from pathlib import Path; found = audit(Path(sys.argv[1]))\n"
        "print(peak_memory_bytes(), *found.problems, sep='|')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "wide")]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    peak, problem = done.stdout.split("|")
    assert int(peak) <= BOUND
    assert "tensor model.embed_tokens.weight holds infinite or NaN values" in problem
