"""What goes with `--quality`, and what does not; told before anything is read.

Owns those rules alone: imports neither mlx nor a model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.errors import UsageError
from configs.resolve import Resolved

_ONE = "leave one of them out"
ALLOWED_BESIDE = ("model.revision", "model.step", "tokenizer.trust_remote_code")
"""Options that say how to read a source: they go with `--quality DIR` too."""


def quality_folder(args: argparse.Namespace) -> Path | None:
    """The folder to measure in place of a conversion, if one was named."""
    return Path(args.quality) if isinstance(args.quality, str) else None


def check_quality(args: argparse.Namespace, resolved: Resolved) -> None:
    """Refuse flags that contradict each other.

    Raises:
        UsageError: naming one of them.
    """
    if args.quality is None:
        for flag, value in (
            ("--reference", args.reference),
            ("--text", args.text),
            ("--plot", args.plot),
        ):
            if value is not None:
                others = "" if flag == "--reference" else " or --sweep"
                raise UsageError(flag, f"means nothing without --quality{others}", "add it")
        return
    if quality_folder(args) is not None:
        return
    if args.reference is not None:
        raise UsageError("--reference", "goes with --quality DIR alone", "name the folder")
    if args.dry_run:
        raise UsageError("--quality", "nothing is made with --dry-run", _ONE)
    if args.consume_source:
        raise UsageError("--quality", "needs the source, which --consume-source releases", _ONE)
    if args.fuse_adapter is not None:
        raise UsageError(
            "--quality", "holds the result against the source, to which an adapter is added", _ONE
        )
    if resolved.convert.dequantize:
        raise UsageError("--quality", "measures MLX folders, and --dequantize makes none", _ONE)
