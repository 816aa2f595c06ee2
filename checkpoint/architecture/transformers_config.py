"""The child process that asks transformers what a config.json means.

Owns one question: which values does transformers' configuration class hold for
this config, its defaults filled in? Knows nothing of mlx-lm, of this project's
other modules (it is run by its path, not imported), or of any model folder: the
config arrives on stdin, and only classes that transformers itself ships are
used, so no remote code can run.

transformers costs seconds and tens of megabytes to import, which is why it gets
a process of its own; torch, which it would add if it could, is kept out.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY_LIMIT = 4 << 30  # of address space; the classes need 1


def describe(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers reads in `config`.

    Returns:
        `known`: whether transformers ships a class for this model type; and if it does
        `values`: every value the class holds for this config, `null`s included;
        `defaults`: what the class holds when nothing is given;
        `aliases`: other names the class answers to, each with its own name;
        `text`: the same three for the text part of a multimodal config, or null.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        return {"known": False}
    held = CONFIG_MAPPING[config["model_type"]](**config)
    text = getattr(held, "text_config", None)
    return {"known": True, **_held(held), "text": _held(text) if text is not None else None}


def _held(config: Any) -> dict[str, Any]:
    return {
        "values": config.to_dict(),
        "defaults": type(config)().to_dict(),
        "aliases": dict(type(config).attribute_map),
    }


def main() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    except (ImportError, ValueError, OSError):
        pass  # not every system has the limit; the caller's cap on time remains
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` fail at once
    answer = describe(json.load(sys.stdin))
    json.dump(answer, sys.stdout, default=str)


if __name__ == "__main__":
    main()
