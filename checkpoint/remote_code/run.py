"""Runs the Python code of a model folder's own in a process of its own.

Owns the process: its surroundings, its cap on time, its failures as typed errors. It is no
sandbox: the code may do what the user may, which is why nothing here is called unless the
user said so. It sees no token of the hub, no network that the hub's library would ask, and
leaves no copy of itself behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.folder import file_in
from configs.errors import SourceError

FLAG = "--trust-remote-code"
_SECONDS = 300.0
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN")
_ANSWER_LIMIT = 200_000_000
_CODE_LIMIT = 10_000_000


def ask_code(folder: Path, question: str, **more: object) -> dict[str, Any]:
    """The answer of the folder's own code.

    Args:
        folder: The model folder.
        question: "config" or "tokenizer".
        more: What else the question takes.

    Raises:
        SourceError: The code fails, takes too long, or gives no answer.
    """
    script = Path(__file__).with_name("child.py")
    with tempfile.TemporaryDirectory(prefix="mlx-ferry-code-") as room:
        answer = Path(room) / "answer.json"
        asked = {
            "question": question,
            "folder": str(folder.resolve()),
            "answer": str(answer),
            "torch": _names_torch(folder),
        }
        try:
            child = subprocess.run(
                [sys.executable, "-P", str(script)],
                input=json.dumps(asked | more),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=_surroundings(room),
                cwd=room,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            what = f"ran its own code for {_SECONDS:.0f} s without an answer"
            raise SourceError(folder, what, f"leave {FLAG} out") from error
        except OSError as error:
            what = f"can't be started ({error.strerror})"
            raise SourceError(sys.executable, what, "is Python installed whole?") from error
        if child.returncode != 0 or not answer.is_file():
            lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
            reason = lines[-1][:300] if lines else f"exit status {child.returncode}"
            mend = "install what it asks for, or use another copy of the model"
            raise SourceError(folder, f"has code of its own that fails ({reason})", mend)
        if answer.stat().st_size > _ANSWER_LIMIT:
            raise SourceError(folder, "has code of its own that gives too much", "")
        found: dict[str, Any] = json.loads(answer.read_text("utf-8"))
        return found


def _names_torch(folder: Path) -> bool:
    """Whether the code may import torch, which takes seconds."""
    scripts = (file_in(folder, name) for name in disk.list_folder(folder) if name.endswith(".py"))
    return any(b"torch" in disk.read_whole(script, _CODE_LIMIT) for script in scripts)


def _surroundings(room: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _TOKENS}
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": room,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
        "TRANSFORMERS_VERBOSITY": "critical",
    }
    return kept | quiet
