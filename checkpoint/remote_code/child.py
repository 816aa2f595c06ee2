"""The child process in which the code of a model folder runs, once the user allowed it.

Owns two questions: what the folder's configuration class makes of its config.json, and what
its tokenizer class holds. Run by its path, never imported; knows nothing of this project's
other modules. The answer is a JSON file, since the code may print whatever it likes.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any


def config_values(folder: str) -> dict[str, Any]:
    """`known`: transformers has a class itself, and no code was run; else `values`."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    told = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    if told.get("model_type") in CONFIG_MAPPING:
        return {"known": True}
    held = AutoConfig.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    return {"known": False, "values": held.to_dict()}


def tokenizer_content(folder: str, texts: list[str]) -> dict[str, Any]:
    """The tokenizer as `json`, or as what tiktoken holds of it, and its `ids` of the texts."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    answer: dict[str, Any] = {
        "class": type(made).__name__,
        "ids": [list(made(text, add_special_tokens=False)["input_ids"]) for text in texts],
        "special": {
            name: str(token)
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (token := getattr(made, name, None)) is not None
        },
    }
    backend = getattr(made, "backend_tokenizer", None)
    if backend is not None:
        return {**answer, "json": backend.to_str()}
    for held in vars(made).values():
        if type(held).__module__.startswith("tiktoken") and hasattr(held, "_mergeable_ranks"):
            ranks = held._mergeable_ranks.items()
            return {
                **answer,
                "pattern": held._pat_str,
                "ranks": [[base64.b64encode(key).decode(), rank] for key, rank in ranks],
                "specials": dict(held._special_tokens),
            }
    return answer


def main() -> None:
    asked = json.load(sys.stdin)
    if not asked["torch"]:
        sys.modules["torch"] = None  # type: ignore[assignment]  # saves seconds
    if asked["question"] == "config":
        answer = config_values(asked["folder"])
    else:
        answer = tokenizer_content(asked["folder"], asked["texts"])
    Path(asked["answer"]).write_text(json.dumps(answer, default=str), "utf-8")


if __name__ == "__main__":
    main()
