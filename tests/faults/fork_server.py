"""Runs `convert` again and again in forked children, and kills them: no imports to wait for.

Each line of stdin is an order, and each is answered by a line on stdout:

    {"argv": [...], "kill_after": seconds or null, "kill_at": n or null}
    {"killed": true or false, "code": 0, "calls": ["open", ...]}

`kill_at` ends the child with its n-th file-system call not made; without it, `calls` are
those that were made. Blocks are small, so that there are many.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from checkpoint.architecture import explicit, meaning
from convert import blocks, pipeline, prepare, progress, show
from convert.cli import main
from tests.faults.faulty import Counting, below_disk

IMPORTED_EARLY = (pipeline, prepare, progress, show)
BLOCK_BYTES = 1 << 16


class _Ending(Counting):
    """Ends the process, as kill -9 would, in place of a call."""

    def __init__(self, last: int | None) -> None:
        super().__init__()
        self._last = last

    def __call__(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if len(self.calls) + 1 == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(name, call, *arguments, **named)


def _child(order: dict[str, Any], answer: int) -> None:
    silent = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(silent, standard)
    with below_disk(watch := _Ending(order["kill_at"])):
        code = main(order["argv"])
    os.write(answer, json.dumps({"code": code, "calls": watch.calls}).encode())
    os._exit(0)


def _carry_out(order: dict[str, Any]) -> dict[str, Any]:
    answer, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(order, child_end)
    os.close(child_end)
    if (
        order["kill_after"] is not None
        and not select.select([answer], [], [], order["kill_after"])[0]
    ):
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(answer, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return {"killed": False, **json.loads(told)} if told else {"killed": True}


def serve() -> None:
    """Carry out orders until there are no more."""
    blocks.BLOCK_BYTES = BLOCK_BYTES
    known: dict[str, Any] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "config" in order:  # once: what transformers says of it is not asked in every child
            known["meaning"] = meaning.transformers_meaning(order["config"])
            explicit.transformers_meaning = lambda config: known["meaning"]
            continue
        print(json.dumps(_carry_out(order)), flush=True)


if __name__ == "__main__":
    serve()
