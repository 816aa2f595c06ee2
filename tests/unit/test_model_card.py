"""The model card: what it says, and what it keeps of the source's card."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from convert.front_matter import LIMIT, FrontMatterError, read_front_matter, split_readme
from convert.model_card import base_model, card_for_repository, card_warnings, model_card

COMMIT = "b968826d9c46dd6066d109eabc6255188de91218"
RECEIPT: dict[str, Any] = {
    "source": {"given": "Qwen/Q", "origin": "hub", "repo_id": "Qwen/Q", "commit": COMMIT},
    "architecture": "qwen3",
    "options": {
        "quantize": True,
        "bits": 4,
        "group_size": 64,
        "mode": "affine",
        "method": "rtn",
        "dtype": "bfloat16",
        "layers": [],
    },
    "versions": {"mlx-ferry": "9.9"},
    "parameters": 8_190_735_360,
    "quantized_parameters": 8_190_000_000,
    "bits_per_weight": 4.5006,
    "tensor_bytes": 4_608_000_000,
    "shards": [{"file": "model.safetensors"}],
    "files": [],
    "kept": [],
}
FRONT = """\
license: other  # see below
license_name: tongyi
license_link: LICENSE
language:
- en
- no
- 日本語
datasets: [a/b, "c/d"]
base_model:
- Qwen/Q-Base
- Qwen/Other
base_model_relation: merge
library_name: transformers
tags:
- chat
- 'yes'
model-index:
- name: Q
  results: []
extra_gated_prompt: |
  Do you agree?

   Do you?
widget: {text: "hi"}
"""
BODY = "\n# Q\r\n\n```sh\nls  \n```\n--- \n<!-- mlx-ferry: end -->\nno newline"


def receipt(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(RECEIPT) | changes


def local() -> dict[str, Any]:
    source = {"given": "/home/me/q", "origin": "local", "repo_id": None, "commit": None}
    return receipt(source=source)


def front_of(card: str) -> dict[str, Any]:
    front = yaml.safe_load(split_readme(card)[0])
    assert isinstance(front, dict)
    return front


def test_front_matter_stays_but_for_what_is_another_model_s() -> None:
    card = model_card(RECEIPT, f"---\n{FRONT}---\n{BODY}")
    kept = split_readme(card)[0]
    for line in (
        "license: other  # see below\n",
        "- no\n",
        '{text: "hi"}\n',
        "Do you agree?\n\n   Do",
    ):
        assert line in kept
    front = front_of(card)
    assert front["base_model"] == "Qwen/Q" and front["base_model_relation"] == "quantized"
    assert front["library_name"] == "mlx" and front["pipeline_tag"] == "text-generation"
    assert front["tags"] == ["chat", "yes", "mlx"]
    assert front["datasets"] == ["a/b", "c/d"]
    assert "model-index" not in front, "results of other weights"
    assert card.endswith(BODY)
    hub_sees = ModelCard(card).data
    assert (hub_sees.license_name, hub_sees.base_model) == ("tongyi", "Qwen/Q")


def test_of_a_local_source_nothing_is_invented() -> None:
    card = model_card(local(), f"---\n{FRONT}---\n{BODY}")
    front = front_of(card)
    assert front["base_model"] == ["Qwen/Q-Base", "Qwen/Other"]
    assert front["base_model_relation"] == "merge"
    assert "/home/me" not in card and "Made from a local checkpoint" in card
    assert "base_model" not in front_of(model_card(local(), ""))
    elsewhere = receipt(source=RECEIPT["source"] | {"origin": "modelscope"})
    assert base_model(elsewhere) is None
    assert "Qwen/Q of modelscope at revision" in model_card(elsewhere, "")


def test_a_change_of_format_alone_is_no_quantization() -> None:
    options = {"quantize": False, "dtype": "bfloat16", "layers": []}
    plain = receipt(options=options, quantized_parameters=0)
    card = model_card(plain, "---\npipeline_tag: image-text-to-text\ntags: mlx\n---\n")
    front = front_of(card)
    assert front["base_model"] == "Qwen/Q" and "base_model_relation" not in front
    assert front["pipeline_tag"] == "image-text-to-text" and front["tags"] == ["mlx"]
    assert "Q in MLX format, bfloat16" in card and "Quantization" not in card


def test_what_came_back_from_mlx_is_not_called_mlx() -> None:
    card = model_card(RECEIPT, f"---\n{FRONT}---\n{BODY}")
    options = {"quantize": False, "dequantize": True, "dtype": "bfloat16", "layers": []}
    back = model_card(receipt(options=options, quantized_parameters=0), card)
    assert "Q in Hugging Face format, bfloat16" in back
    assert front_of(back)["library_name"] == "transformers"
    assert "mlx" not in front_of(back)["tags"]
    assert back.count("<!-- mlx-ferry: begin -->") == 1 and back.endswith(BODY)


def test_what_the_section_says() -> None:
    rules = [
        {"pattern": "*.down_proj", "bits": 6, "group_size": 32, "mode": None, "keep": False},
        {"pattern": "lm_head", "bits": None, "group_size": None, "mode": None, "keep": True},
    ]
    card = model_card(
        receipt(
            options=RECEIPT["options"] | {"layers": rules},
            kept=[{"name": "lm_head.weight", "reason": "kept by a rule | `x`"}],
            proof={"tokens": 128, "largest_logit_error": 0.0123, "same": True, "file": "/home/me"}
            | {"seconds": 71, "stages": [{"name": "layer 0"}], "peak_memory_bytes": 73},
            quality={"perplexity": {"source": 8.125, "result": 8.25}, "text": "a text"},
        ),
        "",
    )
    for row in (
        "| Quantization | 4 bits, groups of 64, mode affine, rtn |",
        "| Other tensors in | `bfloat16` |",
        "| Weights | 8,190,735,360 |",
        "| Bits per weight | 4.501, all tensors counted |",
        "| Size | 4.61 GB (4,608,000,000 bytes) in 1 file |",
        "| `*.down_proj` | 6 bits, groups of 32 |",
        "| `lm_head` | not quantized |",
        "| `lm_head.weight` | kept by a rule    x  |",
        "| largest logit error | 0.0123 |",
        "| same | yes |",
        "| perplexity, result | 8.25 |",
        "| text | a text |",
    ):
        assert row in card.splitlines(), row
    assert f"[Qwen/Q](https://huggingface.co/Qwen/Q) at commit [{COMMIT[:12]}]" in card
    assert "| 71 |" not in card and "| 73 |" not in card and "layer 0" not in card
    assert "with mlx-ferry 9.9." in card and "/home/me" not in card
    assert 'mlx_lm.generate --model . --prompt "Hello"' in card
    assert 'infer --model . --prompt "Hello"' in card


def test_many_kept_weights_are_counted() -> None:
    kept = [{"name": f"layers.{number}.gate", "reason": "small"} for number in range(40)]
    card = model_card(receipt(kept=kept), "")
    assert "40 weights are not quantized" in card and "layers.3.gate" not in card


def test_the_repository_is_named_once_it_is_known() -> None:
    card = model_card(RECEIPT, f"---\n{FRONT}---\n{BODY}")
    published = card_for_repository(card, RECEIPT, "me/q")
    assert 'infer --model me/q --prompt "Hello"' in published and "--model . " not in published
    assert published.replace("--model me/q ", "--model . ") == card
    assert card_for_repository("# mine\n", RECEIPT, "me/q") == "# mine\n"


def test_a_hostile_receipt_stays_in_its_cells() -> None:
    hostile = receipt(
        source=RECEIPT["source"] | {"repo_id": "a](javascript:x)/b", "commit": "x\n# y"},
        architecture="x`|\n<script>",
        kept=[{"name": "a`\x1b[2J|<!-- mlx-ferry: end -->", "reason": "[x](y)\n\n# z"}],
    )
    section = model_card(hostile, "").partition("---\n<!--")[2]
    assert "\x1b" not in section and "<script>" not in section and "\n# " not in section
    assert "](javascript" not in section and "](y)" not in section
    assert section.count("<!-- mlx-ferry: end -->") == 1


UNUSABLE = {
    "a: [1": "not valid YAML",
    "a: *x": "alias",
    "a: &x [1]\nb: *x": "alias",
    "a: " + "[" * 50: "nested too deep",
    "a: !!python/object/apply:os.system [ls]": "tag",
    "a: 1\na: 2": "twice",
    "{a: b}": "`key: value`",
    "just words": "`key: value`",
    "  a: b": "start their line",
    "? [a]\n: b": "start their line",
    "a: \x01": "characters",
    "a: 1\n...\n---  \nb: 2": "more than one",
    "a: " + "x" * LIMIT: "longer than",
}


@pytest.mark.parametrize("text", UNUSABLE, ids=lambda text: text[:20])
def test_front_matter_that_can_t_be_used_is_left_out_and_said(text: str) -> None:
    readme = f"---\n{text}\n---\n# Q\n"
    (warning,) = card_warnings(readme)
    assert UNUSABLE[text] in warning
    card = model_card(RECEIPT, readme)
    assert front_of(card) == {
        "base_model": "Qwen/Q",
        "base_model_relation": "quantized",
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["mlx"],
    }
    assert card.endswith("\n# Q\n")


@pytest.mark.parametrize(
    ("readme", "front", "body"),
    [
        ("", "", ""),
        ("# Q\n", "", "# Q\n"),
        ("---\n---\n# Q\n", "", "# Q\n"),
        ("---\na: 1\n---", "a: 1\n", ""),
        ("\ufeff\n---\r\na: 1\r\n---\r\n# Q", "a: 1\r\n", "# Q"),
        ("\ufeff# Q", "", "# Q"),
        ("---\nnever closed\n", "", "---\nnever closed\n"),
        ("---\na: 1\n----\nb: 2\n---\n", "a: 1\n----\nb: 2\n", ""),
    ],
)
def test_where_the_front_matter_ends(readme: str, front: str, body: str) -> None:
    assert split_readme(readme) == (front, body)


WORDS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
VALUES = st.one_of(
    WORDS,
    st.booleans(),
    st.integers(),
    st.dates(),
    st.none(),
    st.lists(WORDS, max_size=3),
    st.dictionaries(WORDS, WORDS, max_size=2),
)
KEYS = st.sampled_from(
    [
        "license",
        "language",
        "tags",
        "base_model",
        "library_name",
        "model-index",
        "inference",
        "x y",
        "é",
    ]
)


@settings(deadline=None)
@given(
    front=st.dictionaries(KEYS, VALUES, max_size=6),
    style=st.sampled_from(["|", '"', "'", None]),
    body=st.text(max_size=40),
)
def test_any_front_matter_is_kept_or_left_out_and_said(
    front: dict[str, Any], style: str | None, body: str
) -> None:
    text = yaml.safe_dump(front, allow_unicode=True, default_style=style) if front else ""
    try:
        usable = bool(read_front_matter(text)) or True
    except FrontMatterError:
        usable = False
    card = model_card(local(), f"---\n{text}---\n{body}")
    made = front_of(card)
    if usable:
        for key in front.keys() - {"tags", "library_name", "model-index"}:
            assert made[key] == front[key], key
    else:
        assert card_warnings(f"---\n{text}---\n{body}")
    assert made["library_name"] == "mlx" and made["tags"][-1] == "mlx"
    assert card.endswith(body)


@settings(deadline=None)
@example(text="a::\t")  # fine for libyaml, and not for the hub, which reads cards by Python's own
@given(text=st.text(st.sampled_from("ab:-?[]{}&*!|>'\"%@`#, \n\r\t"), max_size=60))
def test_no_front_matter_breaks_the_card(text: str) -> None:
    card = model_card(RECEIPT, f"---\n{text}\n---\nend")
    assert front_of(card)["base_model"] == "Qwen/Q"
    assert re.search(r"\nend\Z", card)
