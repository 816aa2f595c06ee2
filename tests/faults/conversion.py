"""A conversion without the command around it, and what it leaves."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from checkpoint.source import SourceFolder
from configs.loader import read_layers
from convert.cli import parser
from convert.destination import check_destination
from convert.pipeline import convert
from convert.prepare import prepare


class Conversion:
    """A conversion that is prepared once and carried out often."""

    def __init__(self, source: Path, *flags: str) -> None:
        given = ["-q", "--method", "rtn", "--hf-path", str(source), *flags]
        self.options = read_layers(parser().parse_args(given)).resolve()
        self.prepared = prepare(SourceFolder(source, "local"), self.options)

    def run(self, out: Path, **hooks: Any) -> dict[str, Any]:
        destination = check_destination(out, force=True)
        silent = nullcontext(_unheard)
        return convert(self.prepared, self.options, destination, lambda total: silent, **hooks)


def _unheard(name: str, nbytes: int) -> None:
    """Progress that nobody watches."""


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
