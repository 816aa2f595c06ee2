"""transformers' answer on a config, without the seconds its child process takes to start."""

from __future__ import annotations

import json
from typing import Any

from checkpoint.architecture.meaning import Meaning
from checkpoint.architecture.transformers_config import describe


def meaning_in_process(config: dict[str, Any]) -> Meaning | None:
    """What `transformers_meaning` returns; errors are transformers' own."""
    answer = json.loads(json.dumps(describe(json.loads(json.dumps(config))), default=str))
    if not answer["known"]:
        return None
    text = Meaning(**answer["text"]) if answer["text"] else None
    return Meaning(answer["values"], answer["defaults"], answer["aliases"], text)
