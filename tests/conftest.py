"""What the tests of the commands share: tiny checkpoints, and one child process a config."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from checkpoint.architecture import explicit
from tests.factories_models import tiny_model

_meaning = explicit.transformers_meaning
_by_text = cache(lambda text: _meaning(json.loads(text)))


@pytest.fixture(autouse=True)
def one_child_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes seconds to start; what it says of the same config is kept."""

    def kept(config: dict[str, Any]) -> Any:
        return _by_text(json.dumps(config, sort_keys=True))

    monkeypatch.setattr(explicit, "transformers_meaning", kept)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A tiny Llama checkpoint that a test may change."""
    return tiny_model(tmp_path / "llama", "llama")


@pytest.fixture
def qwen2(tmp_path: Path) -> Path:
    """A tiny Qwen2 checkpoint with a tied head."""
    return tiny_model(tmp_path / "qwen2", "qwen2")
