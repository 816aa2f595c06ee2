"""What the command needs of a proof: before a conversion, at its end, and for a folder.

Owns the order of checks, and where the source of a folder is found. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoint.folder import file_in
from checkpoint.json_file import read_json_object
from checkpoint.source import SourceFolder, resolve_source
from configs.errors import SourceError, VerifyError
from convert.proof.prove import prove
from convert.proof.reference import check_reference, require_torch
from convert.proof.report import Proof
from convert.receipt import FILE

_LIMIT = 100_000_000
_ON_HUBS = {"hub": "", "modelscope": "modelscope:"}


def prover(
    source: SourceFolder, *, quiet: bool, tell: Callable[[str], None]
) -> Callable[[Path], dict[str, Any]]:
    """What `pipeline.convert` calls with the staged folder.

    Sees first that transformers can compute the source, so that no conversion of hours ends
    in the news that it can't be proven.

    Args:
        source: The checkpoint.
        quiet: Show no progress.
        tell: Told the verdict, and the table of a proof that failed, line by line.

    Raises:
        FerryError: torch is not installed.
        ArchitectureError: transformers can't compute the source.
    """
    check_reference(source.path)

    def prove_staged(folder: Path) -> dict[str, Any]:
        proof = prove(source, folder, quiet=quiet)
        if not proof.ok:
            for line in proof.text().splitlines():
                tell(line)
            raise VerifyError("--prove", proof.verdict, "nothing was published; please report it")
        if not quiet:
            tell(proof.verdict)
        return proof.as_json()

    return prove_staged


def prove_folder(folder: Path, named: str | None, revision: str | None, *, quiet: bool) -> Proof:
    """Hold a finished folder against its source.

    Args:
        folder: The folder.
        named: The source; the one that the folder's receipt names when None.
        revision: A revision of it on its hub.
        quiet: Show no progress.

    Raises:
        FerryError: torch is not installed.
        SourceError: nothing says what the source is, or it is not there.
        ArchitectureError: transformers can't compute it.
    """
    require_torch()
    _refuse_fused(folder)
    if named is None:
        named, revision = source_of(folder)
    return prove(resolve_source(named, revision, quiet=quiet), folder, quiet=quiet)


def _refuse_fused(folder: Path) -> None:
    """Refuse a folder that its source alone does not explain."""
    path = file_in(folder, FILE)
    if path.is_file() and read_json_object(path, SourceError, _LIMIT).get("adapter"):
        what = "tells of an adapter that is fused into the folder, and of which the source has none"
        raise SourceError(path, what, "leave --prove out")


def source_of(folder: Path) -> tuple[str, str | None]:
    """The source that a folder's receipt names, and its commit."""
    mend = "name the source with --hf-path"
    path = file_in(folder, FILE)
    if not path.is_file():
        raise SourceError(path, "is missing: it would say what the folder was made from", mend)
    told = read_json_object(path, SourceError, _LIMIT).get("source")
    source = told if isinstance(told, dict) else {}
    name, commit = source.get("repo_id"), source.get("commit")
    if source.get("origin") in _ON_HUBS and isinstance(name, str):
        named = f"{_ON_HUBS[source['origin']]}{name}"
        return named, commit if isinstance(commit, str) else None
    given = source.get("given")
    if not isinstance(given, str) or not Path(given).expanduser().exists():
        raise SourceError(path, f"names a source that is not here ({given!r})", mend)
    return given, None
