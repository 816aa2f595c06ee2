"""nanochat's own folders, by the command: every layout, era and tokenizer, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.cli import main as convert
from inference.batch.messages import read_messages
from inference.cli import main as infer
from inference.device import Placement
from inference.load import LoadedModel, load, open_folder
from inference.template import find_template
from inference.tokenizer import load_tokenizer
from tests.factories_nanochat import (
    REFERENCES,
    SHARED,
    read_reference,
    sizes_of,
    write_checkpoint,
    write_tokenizer,
)
from tests.nanochat_reference import ERAS, logits, random_weights

OFF = 1e-3
IDS = [int(value) for value in np.random.default_rng(5).integers(0, 300, 40)]
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/nanochat is not here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of the last era with its tokenizer beside it."""
    sizes = sizes_of("E4")
    write_checkpoint(tmp_path / "d5", random_weights("E4", sizes), sizes)
    return write_tokenizer(tmp_path / "d5")


def converted(source: Path, *flags: str) -> Path:
    made = source.parent / "made"
    assert convert(["--hf-path", str(source), "--mlx-path", str(made), "--quiet", *flags]) == 0
    return made


def loaded(folder: Path) -> LoadedModel:
    return load(open_folder(folder), Placement("cpu", "float32"))


def off(folder: Path, era: str, sizes: Mapping[str, Any], seed: int = 0) -> float:
    """How far a folder's logits are from the reference's."""
    expected = logits(random_weights(era, sizes, seed), sizes, ERAS[era], IDS)
    found = np.array(loaded(folder).model(mx.array([IDS]))[0])
    return float(np.abs(found - expected).max())


def refused(capsys: pytest.CaptureFixture[str], source: Path, *flags: str, code: int = 1) -> str:
    made = source.parent / "refused"
    assert convert(["--hf-path", str(source), "--mlx-path", str(made), *flags]) == code
    told = capsys.readouterr().err
    assert not made.exists()
    return [line for line in told.splitlines() if line.startswith("error: ")][-1]


@pytest.mark.parametrize("era", ERAS)
def test_every_era_computes_what_nanochat_does(
    era: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = sizes_of(era)
    source = write_checkpoint(tmp_path / "d5", random_weights(era, sizes), sizes)
    write_tokenizer(source)

    made = converted(source)

    assert off(made, era, sizes) < OFF
    shapes = {name: value.shape for name, value in load_file(made / "model.safetensors").items()}
    rows = {
        shape[0] for name, shape in shapes.items() if name.endswith(("wte.weight", "head.weight"))
    }
    assert rows == {300}  # and not 320
    receipt = json.loads((made / "conversion.json").read_text())
    assert any("nanochat checkpoint" in note for note in receipt["notes"])
    assert any("20 rows" in note for note in receipt["notes"])
    assert receipt["dropped"] == []


@needs_shared
@pytest.mark.parametrize("name", REFERENCES)
def test_every_reference_converts(name: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert convert(["--hf-path", str(SHARED / name), "--mlx-path", str(made), "--quiet"]) == 0

    _, _, told = read_reference(name)
    found = np.array(loaded(made).model(mx.array([told["ids"]]))[0])

    assert np.abs(found - told["logits"]).max() < OFF


def test_the_first_era_is_mlx_lms_own(tmp_path: Path) -> None:
    from mlx_lm import load as load_stock

    sizes = sizes_of("E0")
    source = write_checkpoint(tmp_path / "d5", random_weights("E0", sizes), sizes)
    write_tokenizer(source)

    model, tokenizer = load_stock(str(converted(source)))[:2]

    found = np.array(model(mx.array([IDS]))[0])
    expected = logits(random_weights("E0", sizes), sizes, ERAS["E0"], IDS)
    assert np.abs(found - expected).max() < OFF
    special = tokenizer.convert_tokens_to_ids(["<|bos|>", "<|assistant_end|>"])
    assert tokenizer.eos_token_ids == set(special)


def test_every_constant_is_in_the_config(folder: Path) -> None:
    config = json.loads((converted(folder) / "config.json").read_text())

    assert (
        config
        | {
            "model_type": "nanochat_2026",
            "attention_windows": [128, 128, 128, 512, 512],
            "rope_theta": 1e5,
            "qk_scale": 1.2,
            "final_logit_softcapping": 15.0,
            "rms_norm_eps": 2.0**-23,
            "value_embedding_layers": [0, 2, 4],
            "value_gate_scale": 3.0,
            "value_gate_width": 12,
            "smear_gate_width": 24,
            "backout_layer": 2,
            "residual_lambdas": True,
            "vocab_size": 300,
            "max_position_embeddings": 512,
            "eos_token_id": [295, 291],
        }
        == config
    )


def test_quantized_leaves_gates_and_scalars(folder: Path) -> None:
    made = converted(folder, "-q", "--bits", "8", "--group-size", "32")

    tensors = load_file(made / "model.safetensors")
    kept = {name for name, value in tensors.items() if value.dtype == np.float32}
    plain = {name for name in kept if not name.endswith(("scales", "biases"))}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in plain} == {
        "transformer",
        "smear_gate",
        "ve_gate",
    }
    expected = logits(random_weights("E4", sizes_of("E4")), sizes_of("E4"), ERAS["E4"], IDS)
    found = np.array(loaded(made).model(mx.array([IDS]))[0])
    assert 0 < np.abs(found - expected).max() < 0.1 * np.ptp(expected)
    assert convert(["--verify", str(made)]) == 0


def test_names_of_a_compiled_model_and_mixed_dtypes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = sizes_of("E4")
    weights = random_weights("E4", sizes)
    half = ("transformer.wte", "value_embeds")
    source = tmp_path / "d5"
    write_checkpoint(source, weights, sizes, prefix="_orig_mod.", half=half)
    write_tokenizer(source)

    made = converted(source)
    warned = capsys.readouterr().err

    assert "bfloat16" in warned
    kinds = {name: value.dtype for name, value in mx.load(str(made / "model.safetensors")).items()}  # type: ignore[union-attr]
    assert kinds["transformer.h.0.attn.c_q.weight"] == mx.bfloat16
    assert kinds["transformer.resid_lambdas"] == mx.float32

    exact = tmp_path / "exact"
    flags = ["--dtype", "float32", "--quiet"]
    assert convert(["--hf-path", str(source), "--mlx-path", str(exact), *flags]) == 0
    rounded = {
        name: np.array(mx.array(value).astype(mx.bfloat16).astype(mx.float32))
        if name.startswith(half)
        else value
        for name, value in weights.items()
    }
    found = np.array(loaded(exact).model(mx.array([IDS]))[0])
    assert np.abs(found - logits(rounded, sizes, ERAS["E4"], IDS)).max() < OFF


def test_what_the_file_can_not_tell_is_assumed_aloud_or_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = sizes_of("E2")
    del sizes["window_pattern"]
    source = write_checkpoint(tmp_path / "d5", random_weights("E2", sizes), sizes)
    write_tokenizer(source)

    config = json.loads((converted(source) / "config.json").read_text())
    warned = capsys.readouterr().err
    assert config["final_logit_softcapping"] == 15.0
    assert config["attention_windows"] == [512] * 5
    assert "convert.softcap=20" in warned and "convert.window_pattern" in warned

    flags = ("--force", "--set", "convert.softcap=20", "--set", "convert.window_pattern=SSSL")
    config = json.loads((converted(source, *flags) / "config.json").read_text())
    assert config["final_logit_softcapping"] == 20.0
    assert config["attention_windows"] == [256, 256, 256, 512, 512]
    assert "warning" not in capsys.readouterr().err


def test_the_first_era_with_another_softcap_is_ours(tmp_path: Path) -> None:
    sizes = sizes_of("E0")
    weights = random_weights("E0", sizes)
    source = write_tokenizer(write_checkpoint(tmp_path / "d5", weights, sizes))

    made = converted(source, "--set", "convert.softcap=20")

    found = np.array(loaded(made).model(mx.array([IDS]))[0])
    plain = np.arctanh(logits(weights, sizes, ERAS["E0"], IDS) / 15) * 15
    assert np.abs(found - 20 * np.tanh(plain / 20)).max() < OFF


def _base(root: Path, *places: str) -> Path:
    sizes = sizes_of("E4")
    for seed, place in enumerate(places):
        write_checkpoint(root / place, random_weights("E4", sizes, seed), sizes)
    write_tokenizer(root / "tokenizer")
    return root


@pytest.mark.parametrize(
    ("places", "named", "taken"),
    [
        (("base_checkpoints/d5",), ".", 0),
        (("base_checkpoints/d5", "chatsft_checkpoints/d5", "mid_checkpoints/d5"), ".", 1),
        (("base_checkpoints/d5", "chatsft_checkpoints/d5"), "base_checkpoints", 0),
        (("base_checkpoints/d5", "chatsft_checkpoints/d5"), "base_checkpoints/d5", 0),
        (("mid_checkpoints/d5", "mid_checkpoints/d20", "mid_checkpoints/d9"), ".", 1),
    ],
)
def test_every_layout(places: tuple[str, ...], named: str, taken: int, tmp_path: Path) -> None:
    root = _base(tmp_path / "nanochat", *places)
    made = tmp_path / "made"

    assert convert(["--hf-path", str(root / named), "--mlx-path", str(made)]) == 0

    assert off(made, "E4", sizes_of("E4"), taken) < OFF


def test_the_highest_step_or_the_one_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = sizes_of("E4")
    for step, seed in ((700, 1), (90, 2)):
        write_checkpoint(folder, random_weights("E4", sizes, seed), sizes, step=step)

    assert off(converted(folder), "E4", sizes, 1) < OFF
    assert "step 700 is taken" in capsys.readouterr().err
    assert off(converted(folder, "--step", "90", "--force"), "E4", sizes, 2) < OFF
    assert "90, 650, 700" in refused(capsys, folder, "--step", "5")


def test_choices_of_nanochat_are_refused_elsewhere(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nanochat" in refused(capsys, llama, "--step", "5")
    assert "nanochat" in refused(capsys, llama, "--set", "convert.softcap=20")
    assert "S and L" in refused(capsys, llama, "--set", "convert.window_pattern=XS", code=2)


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("bigram_embed.weight", (8, 8), "bigram_embed"),
        ("bigram_lambdas", (5,), "bigram_lambdas"),
        ("v0_lambdas", (5,), "v0_lambdas"),
        ("value_embed.weight", (320, 32), "value_embed"),
        ("transformer.value_embed.weight", (320, 32), "value_embed"),
        ("value_embeds.1.weight", (320, 32), "every other layer"),
        ("transformer.h.0.attn.q_norm.weight", (16,), "q_norm"),
        ("transformer.h.0.mlp.c_gate.weight", (64, 64), "c_gate"),
    ],
)
def test_unknown_tensors_are_refused_by_name(
    name: str,
    shape: tuple[int, ...],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = sizes_of("E4")
    weights = {**random_weights("E4", sizes), name: np.zeros(shape, np.float32)}
    source = write_tokenizer(write_checkpoint(tmp_path / "d5", weights, sizes))

    assert told in refused(capsys, source)


@pytest.mark.parametrize("name", ["x0_lambdas", "smear_lambda", "transformer.h.2.attn.c_k.weight"])
def test_a_missing_tensor_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = sizes_of("E4")
    weights = random_weights("E4", sizes)
    del weights[name]
    source = write_tokenizer(write_checkpoint(tmp_path / "d5", weights, sizes))

    assert name in refused(capsys, source)


@pytest.mark.parametrize(
    "wrong",
    [{"n_layer": 6}, {"vocab_size": 250}, {"n_embd": 128}, {"n_head": 3}, {"sequence_len": "x"}],
)
def test_sizes_that_are_not_the_tensors(
    wrong: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = sizes_of("E4")
    weights = random_weights("E4", sizes)
    source = write_tokenizer(write_checkpoint(tmp_path / "d5", weights, {**sizes, **wrong}))

    assert "meta_000650.json" in refused(capsys, source)


def test_a_tokenizer_of_another_model_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tokenizer(folder, 310)
    assert "309" in refused(capsys, folder)
    (folder / "tokenizer.pkl").unlink()
    assert "tokenizer.pkl" in refused(capsys, folder)


def test_what_was_recognised_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = folder.parent / "made"
    assert convert(["--hf-path", str(folder), "--mlx-path", str(made)]) == 0
    assert "a nanochat checkpoint, by its tensors of 2026-03-14" in capsys.readouterr().err


def test_prove_says_that_it_can_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "transformers can't read" in refused(capsys, folder, "--prove")


def test_answers_in_every_mode(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = converted(folder)
    rows = folder.parent / "rows.jsonl"
    prompts = ["the thin one", "12 34 the", "on"]
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    common = ["--model", str(made), "--max-tokens", "8", "--temperature", "0", "--quiet"]
    capsys.readouterr()

    alone = []
    for prompt in prompts:
        assert infer([*common, "--prompt", prompt, "--json"]) == 0
        alone.append(json.loads(capsys.readouterr().out)["text"])
    out = folder.parent / "out.jsonl"
    assert infer([*common, "--batch", str(rows), "--output", str(out)]) == 0

    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == alone


def test_the_tokens_that_end_an_answer(folder: Path) -> None:
    made = converted(folder, "--eos-token", "<|user_end|>")

    tokenizer = load_tokenizer(made, json.loads((made / "config.json").read_text()))

    names = ("<|assistant_end|>", "<|bos|>", "<|user_end|>")
    assert tokenizer.eos_ids == {tokenizer.id_of(name) for name in names}


@needs_shared
def test_chat_is_rendered_as_nanochat_does(tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert convert(["--hf-path", str(SHARED / "92d63d4"), "--mlx-path", str(made), "--quiet"]) == 0
    tokenizer = load_tokenizer(made, json.loads((made / "config.json").read_text()))
    template = find_template(made)
    assert template is not None
    control, special = tokenizer.control_tokens(template.source), tokenizer.special()
    golden = json.loads((SHARED / "tokenizer" / "chat_golden.json").read_text("utf-8"))
    assert len(golden) == 3

    for told in golden:
        conversation = told["conv"]["messages"]
        whole, asked = (
            tokenizer.encode_segments(
                template.render(read_messages(messages), control=control, special=special), control
            )
            for messages in (conversation, conversation[:-1])
        )
        assert asked == told["completion"]
        assert whole == [*told["render"], tokenizer.id_of("<|assistant_start|>")]


def test_messages_out_of_turn_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = converted(folder)
    rows = folder.parent / "rows.jsonl"
    turn = {"role": "user", "content": "the"}
    wrong = [[turn, turn], [turn, {**turn, "role": "system"}]]
    rows.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in wrong))
    out = folder.parent / "out.jsonl"

    assert infer(["--model", str(made), "--batch", str(rows), "--output", str(out)]) == 1

    told = [json.loads(line)["error"]["message"] for line in out.read_text().splitlines()]
    assert "in turn" in told[0] and "in turn" in told[1]


def test_an_eos_token_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'<|nothing|>' is not a token" in refused(
        capsys, folder, "--eos-token", "<|nothing|>", code=2
    )


def test_eos_tokens_of_a_hugging_face_folder(llama: Path) -> None:
    tokens = json.loads((llama / "tokenizer.json").read_text())["model"]["vocab"]
    before = json.loads((llama / "config.json").read_text()).get("eos_token_id")

    made = converted(llama, "--eos-token", "a", "--eos-token", "b")

    ends = json.loads((made / "generation_config.json").read_text())["eos_token_id"]
    first = [] if before is None else before if isinstance(before, list) else [before]
    assert ends == [*first, tokens["a"], tokens["b"]]


def test_a_chat_template_of_the_users_own(folder: Path) -> None:
    template = folder.parent / "mine.jinja"
    template.write_text("{{ messages[0]['content'] }}")

    made = converted(folder, "--chat-template", str(template))

    assert (made / "chat_template.jinja").read_text() == template.read_text()
