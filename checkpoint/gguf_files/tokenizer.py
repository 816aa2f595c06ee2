"""A GGUF file's tokenizer as the files that transformers reads, made by transformers itself.

Owns the child process that makes them, its caps and its failures: transformers costs
seconds and much memory to import, and what it reads comes from a stranger.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import SourceError

SECONDS = 180.0
_KEYS = {
    "ggml.model": "tokenizer_type",
    "ggml.pre": "pre_tokenizer_type",
    "ggml.tokens": "tokens",
    "ggml.scores": "scores",
    "ggml.token_type": "token_type",
    "ggml.merges": "merges",
    "ggml.bos_token_id": "bos_token_id",
    "ggml.eos_token_id": "eos_token_id",
    "ggml.unknown_token_id": "unk_token_id",
    "ggml.padding_token_id": "pad_token_id",
    "ggml.add_space_prefix": "add_prefix_space",
}
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unk_token_id",
    "pad_token": "pad_token_id",
}
# Whose texts llama.cpp begins with a token where the file does not say.
_BEGIN = ("llama3", "llama-v3", "llama-bpe")
TEMPLATE = "tokenizer.chat_template"


def tokenizer_files(metadata: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and the chat template, if there is one.

    Raises:
        SourceError: the metadata hold no tokenizer that can be read.
    """
    told = {
        name: metadata[f"tokenizer.{key}"]
        for key, name in _KEYS.items()
        if f"tokenizer.{key}" in metadata
    }
    tokens = told.get("tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise SourceError(path, "holds no tokenizer", "take the model's safetensors checkpoint")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, key in _SPECIAL.items():
        place = told.get(key)
        if type(place) is int and 0 <= place < len(tokens):
            config[name] = tokens[place]
    begins = metadata.get("tokenizer.ggml.add_bos_token")
    if begins is None:
        begins = told.get("tokenizer_type") == "llama" or told.get("pre_tokenizer_type") in _BEGIN
    config["add_bos_token"] = bool(begins) and "bos_token" in config
    asked = {
        "architecture": metadata.get("general.architecture"),
        "tokenizer": told,
        "begin": config["bos_token"] if config["add_bos_token"] else None,
    }
    files = {"tokenizer.json": _asked(asked, path)}
    template = metadata.get(TEMPLATE)
    if isinstance(template, str):
        files["chat_template.jinja"] = template.encode()
    files["tokenizer_config.json"] = json.dumps(config, ensure_ascii=False, indent=2).encode()
    return files


def _asked(asked: Mapping[str, Any], path: Path) -> bytes:
    script = Path(__file__).with_name("transformers_tokenizer.py")
    quiet = {"TRANSFORMERS_VERBOSITY": "critical", "HF_HUB_OFFLINE": "1"}
    try:
        child = subprocess.run(
            # -P: neither the script's folder nor the current one may offer modules.
            [sys.executable, "-P", str(script)],
            input=json.dumps(asked).encode(),
            capture_output=True,
            env={**os.environ, **quiet, "PYTHONWARNINGS": "ignore"},
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        what = f"holds a tokenizer that transformers did not make within {SECONDS:.0f} s"
        raise SourceError(path, what, "try again") from error
    except OSError as error:
        what = f"transformers can't be started ({error.strerror})"
        raise SourceError(path, what, "is the Python that runs this installed whole?") from error
    if child.returncode:
        lines = [line for line in child.stderr.decode("utf-8", "replace").splitlines() if line]
        reason = lines[-1][:300] if lines else f"exit status {child.returncode}"
        raise SourceError(
            path,
            f"holds a tokenizer that transformers can't make ({reason})",
            "take the model's safetensors checkpoint",
        )
    return child.stdout
