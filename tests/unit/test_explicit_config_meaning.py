"""The child process that asks transformers, its caps and its failures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from checkpoint.architecture import meaning, transformers_config
from checkpoint.architecture.meaning import transformers_meaning
from configs.errors import ArchitectureError, ModelConfigError
from tests.architectures_table import TABLE
from tests.meaning_in_process import meaning_in_process


def test_the_child_answers_what_the_class_holds() -> None:
    config = {**TABLE["qwen3-moe"].config().to_diff_dict(), "dtype": "bfloat16"}
    answer = transformers_meaning(config)
    assert answer == meaning_in_process(config)
    assert answer is not None
    assert answer.get("num_experts") == answer.values["num_local_experts"] == 4


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "llama", "hidden_size": "a"}, "hidden_size"),
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}, "short_factor"),
        ({"model_type": "qwen2", "layer_types": ["spiral"], "num_hidden_layers": 1}, "layer_types"),
    ],
)
def test_what_transformers_refuses_is_said_in_a_line(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        transformers_meaning(config)
    assert caught.value.where == "config.json"
    assert named in caught.value.what
    assert "\n" not in str(caught.value)


def test_the_child_keeps_torch_out() -> None:
    script = Path(transformers_config.__file__)
    code = (
        f"import runpy, sys; runpy.run_path({str(script)!r}, run_name='__main__');"
        "print(sys.modules['torch'], file=sys.stderr)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        input='{"model_type": "llama", "dtype": "bfloat16"}',
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stderr.splitlines()[-1] == "None"


def test_a_child_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meaning, "SECONDS", 0.01)
    with pytest.raises(ArchitectureError, match="did not read it within"):
        transformers_meaning({"model_type": "llama"})


def test_a_child_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(ArchitectureError, match="can't start '/no/such/python'"):
        transformers_meaning({"model_type": "llama"})


def test_transformers_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("raise ImportError('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ArchitectureError, match=r"can't be used \(ImportError: broken\)"):
        transformers_meaning({"model_type": "llama"})


def test_the_current_folder_offers_no_modules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "transformers.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    assert transformers_meaning({"model_type": "llama"}) is not None
