"""`--prove`, from the command: what is right passes, and what no checksum can see does not.

transformers computes the sources in this process (see tests/reference_in_process.py), but
for the tests that name its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import gemma2 as gemma2_module
from mlx_lm.models import llama as llama_module

from checkpoint.architecture import explicit
from convert.cli import main
from tests.meaning_in_process import meaning_in_process
from tests.proof_workshop import (
    PLAIN,
    SQUARE,
    Workshop,
    exchange,
    flags,
    reconfigure,
    rewrite,
)
from tests.reference_in_process import InProcess

Capture = pytest.CaptureFixture[str]
FORMS = (PLAIN, 8, 4, 2)
BITS = (8, 4, 2)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    return InProcess(tmp_path_factory.mktemp("transformers"))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, in_process: InProcess) -> Iterator[None]:
    monkeypatch.setattr(explicit, "transformers_meaning", meaning_in_process)
    in_process.use(monkeypatch)
    with mx.stream(mx.cpu):
        yield


def proved(folder: Path, capsys: Capture, code: int) -> dict[str, Any]:
    """What `--verify --prove --json` says of a folder in which `--verify` finds nothing."""
    capsys.readouterr()
    assert main(["--verify", str(folder), "--json"]) == 0
    capsys.readouterr()
    assert main(["--verify", str(folder), "--prove", "--json", "--quiet"]) == code
    out, err = capsys.readouterr()
    assert err == ""
    told = json.loads(out)
    assert told["ok"] and told["proof"]["ok"] == (code == 0)
    proof: dict[str, Any] = told["proof"]
    return proof


ALL_FORMS = ("llama-square", "qwen2", "qwen3", "gemma2", "mixtral")
FOUR_BITS = (
    *("mistral", "gemma3", "qwen3-moe", "phi3", "cohere2", "starcoder2", "granite"),
    *("gpt2", "gpt-oss", "nanochat", "mamba", "qwen3-next", "deepseek-v3", "llama-yarn"),
)
HONEST = [(name, bits) for name in ALL_FORMS for bits in FORMS] + [(n, 4) for n in FOUR_BITS]


@pytest.mark.parametrize(("name", "bits"), HONEST)
def test_what_is_right_is_proven(
    name: str, bits: int, workshop: Workshop, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert main([*flags(workshop.source(name), out, bits), "--prove", "--json"]) == 0
    printed, err = capsys.readouterr()
    proof = json.loads(printed)["proof"]
    assert proof == json.loads((out / "conversion.json").read_text("utf-8"))["proof"]
    assert proof["ok"] and proof["faults"] == [] and proof["verdict"] in err
    stages = proof["stages"]
    layers = [f"layer {number}" for number in range(len(stages) - 2)]
    assert [stage["name"] for stage in stages] == ["embeddings", *layers, "norm and head"]
    # what is left is rounding, and what rounding costs: the sharper, the fewer the bits
    assert proof["structure_error"] < 5e-4
    if bits == PLAIN:
        assert proof["written_error"] < 5e-4 and proof["top1_agreement"] == 1.0
    else:
        assert 2.0**-bits / 20 < proof["written_error"] < 8 * 2.0**-bits


def wrong_theta(folder: Path) -> None:
    reconfigure(folder, rope_theta=500_000.0)


def transposed(folder: Path) -> None:
    rewrite(folder, "model.layers.1.self_attn.o_proj", lambda weight: weight.T)


def rotated_by_neighbours(folder: Path) -> None:
    """Rows in the order for a RoPE that turns neighbours, where halves are turned."""

    def change(weight: mx.array) -> mx.array:
        heads = weight.reshape(4, 2, -1, weight.shape[-1])
        return heads.swapaxes(1, 2).reshape(weight.shape)

    rewrite(folder, "model.layers.2.self_attn.k_proj", change)


def half_the_scale(folder: Path) -> None:
    rewrite(folder, "model.layers.1.mlp.up_proj", lambda weight: weight * 0.5)


def swapped_queries_and_keys(folder: Path) -> None:
    layer = "model.layers.1.self_attn"
    exchange(folder, f"{layer}.q_proj.", f"{layer}.k_proj.")


def gate_for_up(folder: Path) -> None:
    exchange(folder, "model.layers.0.mlp.gate_proj.", "model.layers.0.mlp.up_proj.")


def another_layers_matrix(folder: Path) -> None:
    exchange(folder, "model.layers.0.mlp.down_proj.", "model.layers.2.mlp.down_proj.")


def another_layer(folder: Path) -> None:
    exchange(folder, "model.layers.0.", "model.layers.1.")


def norms_exchanged(folder: Path) -> None:
    layer = "model.layers.2"
    exchange(folder, f"{layer}.input_layernorm.", f"{layer}.post_attention_layernorm.")


def two_tokens_exchanged(folder: Path) -> None:
    def change(weight: mx.array) -> mx.array:
        return mx.concatenate([weight[1:2], weight[:1], weight[2:]])

    rewrite(folder, "model.embed_tokens", change)


def wrong_epsilon(folder: Path) -> None:
    reconfigure(folder, rms_norm_eps=0.1)


def one_added_to_a_norm(folder: Path) -> None:
    rewrite(folder, "model.layers.1.pre_feedforward_layernorm", lambda weight: weight + 1)


def plain_attention_scale(folder: Path) -> None:
    reconfigure(folder, query_pre_attn_scalar=32)


def no_soft_cap(folder: Path) -> None:
    reconfigure(folder, final_logit_softcapping=1000.0)


def experts_exchanged(folder: Path) -> None:
    def change(weight: mx.array) -> mx.array:
        return mx.concatenate([weight[1:2], weight[:1], weight[2:]])

    rewrite(folder, "model.layers.2.block_sparse_moe.switch_mlp.down_proj", change)


def fewer_experts(folder: Path) -> None:
    reconfigure(folder, num_experts_per_tok=1)


SPOILED: list[tuple[str, Callable[[Path], None], str]] = [
    (SQUARE, wrong_theta, r"layer 0: .* mlx-lm computes something else"),
    (SQUARE, wrong_epsilon, r"layer 0: .* mlx-lm computes something else"),
    (SQUARE, transposed, r"model\.layers\.1\.self_attn\.o_proj\.weight: "),
    (SQUARE, rotated_by_neighbours, r"model\.layers\.2\.self_attn\.k_proj\.weight: "),
    (SQUARE, half_the_scale, r"model\.layers\.1\.mlp\.up_proj\.weight: "),
    (SQUARE, swapped_queries_and_keys, r"model\.layers\.1\.self_attn\.[qk]_proj\.weight: "),
    (SQUARE, gate_for_up, r"model\.layers\.0\.mlp\.gate_proj\.weight: "),
    (SQUARE, another_layers_matrix, r"model\.layers\.2\.mlp\.down_proj\.weight: "),
    (SQUARE, another_layer, r"model\.layers\.0\.mlp\.down_proj\.weight: "),
    (SQUARE, norms_exchanged, r"model\.layers\.2\.input_layernorm\.weight: "),
    (
        SQUARE,
        two_tokens_exchanged,
        r"model\.embed_tokens\.weight: (2 of 320 rows|\d+ of 20,480 values) ",
    ),
    ("gemma2", one_added_to_a_norm, r"model\.layers\.1\.pre_feedforward_layernorm\.weight: "),
    ("gemma2", plain_attention_scale, r"layer 0: .* mlx-lm computes something else"),
    ("gemma2", no_soft_cap, r"norm and head: .* mlx-lm computes something else"),
    ("mixtral", experts_exchanged, r"model\.layers\.2\.block_sparse_moe\.switch_mlp\.down_proj"),
    ("mixtral", fewer_experts, r"layer 0: .* mlx-lm computes something else"),
]


@pytest.mark.parametrize("bits", FORMS)
@pytest.mark.parametrize(
    ("name", "spoil", "named"), SPOILED, ids=[f"{name}-{how.__name__}" for name, how, _ in SPOILED]
)
def test_what_no_checksum_sees(
    name: str,
    spoil: Callable[[Path], None],
    named: str,
    bits: int,
    workshop: Workshop,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    folder = workshop.spoiled(name, bits, spoil, tmp_path / "out")
    proof = proved(folder, capsys, 1)
    assert any(re.match(named, fault) for fault in proof["faults"]), proof["faults"]


def test_two_receipts_are_the_same(workshop: Workshop, tmp_path: Path) -> None:
    source, receipts = workshop.source("qwen2"), []
    for _ in range(2):
        assert main([*flags(source, tmp_path / "out", 4), "--prove", "--quiet", "--force"]) == 0
        receipts.append((tmp_path / "out" / "conversion.json").read_bytes())
    assert receipts[0] == receipts[1]
    assert b"seconds" not in receipts[0] and b'"peak_memory' not in receipts[0]


def test_a_folder_is_proven_by_the_source_that_its_receipt_names(
    workshop: Workshop, capsys: Capture
) -> None:
    folder = workshop.written(SQUARE, 4)
    capsys.readouterr()
    assert main(["--verify", str(folder), "--prove", "--quiet"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and lines[-1].startswith("proven: on ")
    table = [line.split() for line in lines if re.match(r"(stage|embeddings|layer|norm) ", line)]
    assert table[0][0] == "stage" and len(table) == 1 + 1 + 3 + 1
    assert all(row[-1] == "ok" for row in table[1:])
    assert any(line.startswith("not covered: positions beyond") for line in lines)


def test_a_source_that_is_not_there(workshop: Workshop, tmp_path: Path, capsys: Capture) -> None:
    folder, gone = tmp_path / "out", str(tmp_path / "gone")

    def moved(folder: Path) -> None:
        receipt = json.loads((folder / "conversion.json").read_text("utf-8"))
        receipt["source"]["given"] = gone
        (folder / "conversion.json").write_text(json.dumps(receipt), "utf-8")

    workshop.spoiled(SQUARE, 4, moved, folder)
    command = ["--verify", str(folder), "--prove", "--quiet"]
    assert main(command) == 1
    receipt = folder / "conversion.json"
    mend = "; name the source with --hf-path\n"
    expected = f"error: {receipt}: names a source that is not here ({gone!r}){mend}"
    assert capsys.readouterr().err == expected
    receipt.unlink()
    assert main(command) == 1
    expected = f"error: {receipt}: is missing: it would say what the folder was made from{mend}"
    assert capsys.readouterr().err == expected
    assert main([*command, "--hf-path", str(workshop.source(SQUARE))]) == 0


def test_another_model_as_the_source(workshop: Workshop, capsys: Capture) -> None:
    folder, other = workshop.written(SQUARE, 4), workshop.source("llama")
    assert main(["--verify", str(folder), "--prove", "--hf-path", str(other), "--quiet"]) == 1
    assert re.search(
        r"error: .*: is not made from .*; convert it again\n$", capsys.readouterr().err
    )


def transposing_sanitize(self: Any, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """What a wrong rule for names or layouts would do."""
    name = "model.layers.1.self_attn.o_proj.weight"
    return {**weights, name: weights[name].T}


@pytest.mark.parametrize("bits", FORMS)
def test_what_mlx_lm_makes_wrong_is_not_published(
    bits: int,
    workshop: Workshop,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan itself is wrong, so that nothing that is held against the plan can see it."""
    monkeypatch.setattr(llama_module.Model, "sanitize", transposing_sanitize)
    command = flags(workshop.source(SQUARE), tmp_path / "out", bits)
    assert main([*command, "--prove"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and not (tmp_path / "out").exists()
    assert re.search(r"^layer 1 .*WRONG$", err, re.MULTILINE)
    assert not re.search(r"^layer [02] .*WRONG$", err, re.MULTILINE)
    last = err.splitlines()[-1]
    assert last.startswith("error: --prove: not proven: layer 1: with the source's own weights")
    assert "; nothing was published; please report it" in last
    assert main([*command, "--quiet"]) == 0  # without the proof nobody sees it


def test_a_scale_that_mlx_lm_forgets(
    workshop: Workshop, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma's norms multiply by one more than their weight."""

    def forgetful(self: Any, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self.eps)

    monkeypatch.setattr(gemma2_module.RMSNorm, "__call__", forgetful)
    proof = proved(workshop.written("gemma2", 2), capsys, 1)
    wrong = {fault.partition(":")[0] for fault in proof["faults"]}
    assert wrong == {"layer 0", "layer 1", "layer 2", "norm and head"}


def test_a_damaged_folder_is_not_proven(
    workshop: Workshop, tmp_path: Path, capsys: Capture
) -> None:
    folder = workshop.spoiled(SQUARE, 4, lambda made: None, tmp_path / "out")
    (folder / "config.json").write_text("{}")
    capsys.readouterr()
    assert main(["--verify", str(folder), "--prove", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert "proven" not in out
    assert err == "warning: --prove: nothing was proven, since the folder is damaged\n"


@pytest.mark.parametrize(
    ("others", "named"),
    [
        (["--hf-path", "x", "--dry-run"], "--prove: nothing is made with --dry-run"),
        (["--diff", "a", "b"], "--prove: means nothing with --diff"),
        (["--verify", "a", "--bits", "4", "-q"], "--quantize: means nothing with --verify"),
    ],
)
def test_flags_that_contradict_it(others: list[str], named: str, capsys: Capture) -> None:
    assert main(["--prove", *others]) == 2
    assert capsys.readouterr().err.startswith(f"error: {named}; ")


def test_a_source_that_transformers_cannot_read(
    workshop: Workshop, tmp_path: Path, capsys: Capture
) -> None:
    folder = workshop.written(SQUARE, PLAIN)
    capsys.readouterr()
    command = ["--hf-path", str(folder), "--mlx-path", str(tmp_path / "out"), "-q", "--prove"]
    assert main(command) == 1
    err = capsys.readouterr().err.splitlines()
    expected = "is an MLX folder, which transformers can't read: nothing to prove by"
    assert err[-1] == f"error: {folder}: {expected}; convert without --prove"
    assert not (tmp_path / "out").exists()
