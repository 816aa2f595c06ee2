"""transformers' model of a source: what it can't be made from, what it holds when, its ids."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import torch

from checkpoint.shards import read_catalog
from configs.errors import ArchitectureError, SourceError
from convert.proof.reference import check_reference, open_source, order_for
from convert.proof.transformers_child import SETTINGS, carry_out, token_ids
from convert.proof.transformers_model import Blocks, UnprovableError, build
from tests.cli.test_convert import rewrite, weights_of
from tests.reference_in_process import InProcess


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings(action="ignore"):
        yield


def opened(folder: Path) -> Blocks:
    config = json.loads((folder / "config.json").read_text())
    return Blocks(build(config), {n: str(r.file) for n, r in read_catalog(folder).items()})


def order(folder: Path, **changes: Any) -> dict[str, Any]:
    return {**order_for(open_source(folder), None), **changes}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("kimi_linear_9", "transformers has no model of type 'kimi_linear_9'"),
        ("vit", "transformers has no causal language model of type 'vit'"),
    ],
)
def test_what_transformers_has_no_model_for(kind: str, what: str) -> None:
    with pytest.raises(UnprovableError) as caught:
        build({"model_type": kind, "auto_map": {"AutoConfig": "evil.Config"}})
    assert str(caught.value) == what


def test_a_tensor_that_the_source_lacks(llama: Path) -> None:
    rewrite(llama, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(UnprovableError, match=r"lacks 1 tensors .*layers\.1\.mlp\.up_proj"):
        opened(llama)


def test_only_the_loaded_block_has_memory(llama: Path) -> None:
    blocks = opened(llama)
    names = [f"model.layers.1.{key}" for key in blocks.blocks["model.layers.1"].state_dict()]

    def held() -> int:
        parameters = dict(blocks.model.named_parameters(remove_duplicate=False)).values()
        return sum(parameter.untyped_storage().nbytes() for parameter in parameters)

    nothing = held()
    assert nothing == 4 * len(dict(blocks.model.named_parameters()))
    blocks.load(names)
    loaded = [blocks.model.get_parameter(name) for name in names]
    assert held() > nothing + sum(4 * each.numel() for each in loaded) - 4 * len(names) - 1
    source = weights_of(llama)[names[0]].astype(mx.float32)
    assert loaded[0].dtype == torch.float32
    assert loaded[0].tolist() == source.tolist()
    blocks.free(names)
    assert held() == nothing


def test_a_tied_head_is_loaded_with_the_head(qwen2: Path) -> None:
    blocks = opened(qwen2)
    blocks.load(["lm_head.weight"])
    assert blocks.model.lm_head.weight.isfinite().all()
    assert blocks.largest_bytes == 4 * sum(
        each.numel() for each in blocks.model.model.layers[0].parameters()
    )
    assert blocks.most_layers == 2


def test_values_that_are_not_finite(llama: Path, tmp_path: Path) -> None:
    rewrite(llama, model__norm__weight=mx.full((128,), float("nan"), dtype=mx.bfloat16))
    with pytest.raises(UnprovableError, match="logits are infinite or NaN"):
        carry_out(order_for(open_source(llama), tmp_path), lambda **_: None)


def test_the_ids_of_the_text(llama: Path) -> None:
    config = opened(llama).model.config
    ids = token_ids(order(llama), config)
    assert len(ids) == 96 and len(set(ids)) > 20 and max(ids) < 320
    spread = token_ids(order(llama, tokenizer=None), config)
    assert len(spread) == 96 == len(set(spread)) and max(spread) < 320
    assert token_ids(order(llama, text="a"), config) == spread
    config.max_position_embeddings = 24
    assert token_ids(order(llama), config) == ids[:24]


def test_a_machine_that_is_too_small(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InProcess(tmp_path).use(monkeypatch)
    check_reference(llama)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}.__getitem__)
    with pytest.raises(ArchitectureError, match="a single block of this model needs about"):
        check_reference(llama)


def test_a_staged_folder_is_no_source(llama: Path) -> None:
    staged = llama.rename(llama.with_name(".out.ferry-staging"))
    with pytest.raises(SourceError, match="never finished"):
        open_source(staged)
