"""The verdict of a proof, its table, and what of it a receipt holds."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from convert.proof.report import Proof, Stage
from convert.proof.tensors import TensorCheck

GOOD = Stage("layer 0", 6e-7, 1e-3, 0.0571, 0.0573, 0.115)
PROOF = Proof(
    reference="LlamaForCausalLM of transformers 5.23.0",
    form="4 bits, groups of 64, affine",
    tokens=96,
    rows=(replace(GOOD, name="embeddings"), GOOD, replace(GOOD, name="norm and head")),
    tensors=(TensorCheck("model.norm.weight", None, 0.0, 0.0, ""),),
    logits=7e-7,
    divergence=0.01234,
    agreement=0.9375,
    unproven=("positions beyond the text's 96",),
    seconds=14.2,
    peak_memory_bytes=164_000_000,
    reference_peak_memory_bytes=393_000_000,
)


def with_stage(stage: Stage) -> Proof:
    return replace(PROOF, rows=(PROOF.rows[0], stage, PROOF.rows[2]))


def test_what_is_within_what_is_allowed_is_proven() -> None:
    assert PROOF.ok and list(PROOF.faults()) == []
    assert PROOF.verdict == (
        "proven: on 96 tokens it computes what LlamaForCausalLM of transformers 5.23.0 does, "
        "within 1.0e-05 before rounding to 4 bits, groups of 64, affine"
    )


@pytest.mark.parametrize("error", [1.1e-3, math.inf, math.nan])
def test_a_stage_that_computes_something_else(error: float) -> None:
    proof = with_stage(replace(GOOD, structure=error))
    (fault,) = proof.faults()
    assert fault.startswith("layer 0: with the source's own weights it is off by ")
    assert not proof.ok and proof.verdict == f"not proven: {fault}"
    assert [line.split()[-1] for line in proof.text().splitlines()[1:4]] == ["ok", "WRONG", "ok"]


@pytest.mark.parametrize("error", [0.116, math.inf, math.nan])
def test_weights_that_are_further_off_than_their_bits_allow(error: float) -> None:
    (fault,) = with_stage(replace(GOOD, written=error)).faults()
    assert fault.startswith("layer 0: as written it is off by ")
    assert fault.endswith(", more than 1.15e-01, which 4 bits, groups of 64, affine allows")


def test_many_faults_are_counted() -> None:
    wrong = tuple(TensorCheck(f"w{n}", None, 1.0, 0.0, "is odd") for n in range(12))
    proof = replace(PROOF, tensors=wrong)
    assert proof.verdict == "not proven: w0: is odd (and 11 more)"
    lines = proof.text().splitlines()
    assert [line for line in lines if line.startswith("fault:")][-1] == "fault: 4 more"
    assert len(proof.as_json()["faults"]) == 12


def test_a_receipt_holds_nothing_of_a_single_run() -> None:
    again = replace(PROOF, seconds=99.0, peak_memory_bytes=1, reference_peak_memory_bytes=2)
    noise = with_stage(replace(GOOD, structure=8e-7, written=0.05732))
    for other in (again, noise, replace(PROOF, logits=3e-6, divergence=0.012344)):
        assert other.as_json() == PROOF.as_json()
    assert PROOF.as_json()["stages"][1] == {
        "name": "layer 0",
        "structure": 1e-5,
        "structure_allowed": 1e-3,
        "rounded": 0.057,
        "written": 0.057,
        "written_allowed": 0.12,
    }


def test_a_receipt_is_json_whatever_was_found() -> None:
    proof = with_stage(replace(GOOD, structure=math.nan, written=math.inf))
    stage = json.loads(json.dumps(proof.as_json(), allow_nan=False))["stages"][1]
    assert stage["structure"] is None and stage["written"] is None
