"""Asks transformers, in a process of its own, what a config.json means.

Owns the child process: its start, its caps, its failures as typed errors. Knows
nothing of mlx-lm, and does not judge the values it brings back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import ArchitectureError, ModelConfigError

SECONDS = 90.0  # a cold import of transformers from a slow disk takes a good part of a minute


@dataclass(frozen=True)
class Meaning:
    """What transformers' configuration class for a model type holds.

    Attributes:
        values: Every value, defaults filled in; keys the class does not know are carried along.
        defaults: What the class holds when nothing is given.
        aliases: Other names the class answers to, each with the key in `values`.
        text: The same for the text part of a multimodal config.
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str]
    text: Meaning | None = None

    def __contains__(self, key: str) -> bool:
        return key in self.values or self.aliases.get(key) in self.values

    def get(self, key: str) -> Any:
        """The value under a key or under one of its other names; None if there is none."""
        return self.values.get(key, self.values.get(self.aliases.get(key, key)))


def transformers_meaning(config: Mapping[str, Any]) -> Meaning | None:
    """The values of transformers' configuration class, or None if it has none for the type.

    Raises:
        ModelConfigError: transformers refuses the config.
        ArchitectureError: transformers can't be run here.
    """
    script = Path(__file__).with_name("transformers_config.py")
    quiet = {
        "TRANSFORMERS_VERBOSITY": "critical",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    try:
        child = subprocess.run(
            # -P: neither the script's folder nor the current one may offer modules.
            [sys.executable, "-P", str(script)],
            input=json.dumps(dict(config)),
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, **quiet},
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ArchitectureError(
            "config.json", f"transformers did not read it within {SECONDS:.0f} s", "try again"
        ) from error
    except OSError as error:
        raise ArchitectureError(
            "transformers",
            f"can't start {sys.executable!r} ({error.strerror})",
            "is the Python that runs this installed whole?",
        ) from error
    if child.returncode != 0:
        raise _refusal(child.stderr, child.returncode)
    try:
        # The last line: what the classes print themselves comes before it.
        answer = json.loads(child.stdout.rpartition("\n")[2])
    except json.JSONDecodeError as error:
        what = f"gave no answer that can be read ({child.stdout[:100]!r})"
        raise ArchitectureError("transformers", what, "reinstall it") from error
    if not answer["known"]:
        return None
    text = Meaning(**answer["text"]) if answer["text"] is not None else None
    return Meaning(answer["values"], answer["defaults"], answer["aliases"], text)


def _refusal(stderr: str, code: int) -> ModelConfigError | ArchitectureError:
    """The error for a child that failed: the last line of its traceback says why."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit status {code}"
    if reason.startswith(("ModuleNotFoundError", "ImportError")):
        return ArchitectureError("transformers", f"can't be used ({reason})", "reinstall it")
    what = f"transformers refuses it ({reason[:300]})"
    return ModelConfigError("config.json", what, "is it the checkpoint's own?")
