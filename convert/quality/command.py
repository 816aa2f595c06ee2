"""What the command needs of a quality report: on a conversion, and for a folder.

Owns the order of checks and where source and text are found. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint.folder import file_in
from checkpoint.json_file import read_json_object
from checkpoint.recognise import Choices
from checkpoint.source import SourceFolder, resolve_source
from configs.errors import FerryError, SourceError
from convert.proof.command import source_of
from convert.quality.measure import measure
from convert.quality.plot import check_plot, write_plot
from convert.quality.report import Report
from convert.quality.texts import check_disjoint, read_text
from convert.receipt import FILE

_LIMIT = 100_000_000


def measurer(
    source: SourceFolder,
    text: str | None,
    plot: str | None,
    *,
    choices: Choices,
    calibration: Sequence[str | Mapping[str, Any]] = (),
    quiet: bool,
    tell: Callable[[str], None],
) -> Callable[[Path, Mapping[str, Any]], dict[str, Any]]:
    """What `pipeline.convert` calls with the staged folder and the receipt so far.

    Reads the text and sees first that it can be measured on, so that no conversion of hours
    ends in the news that it can't be.

    Args:
        source: The checkpoint.
        text: The text; our sample when None.
        plot: Where to draw the layers' errors, if anywhere.
        choices: What the user says of the source beside its name.
        calibration: Texts that it is calibrated on.
        quiet: Show no progress.
        tell: Told the figures in one line, and whatever came out worse than by rounding.

    Raises:
        FerryError: there is no matplotlib to draw with.
        UsageError: the text is one that the model is calibrated on.
    """
    picture = check_plot(plot)
    read = read_text(Path(text) if text is not None else None, "--text")
    check_disjoint(calibration, read, "--text")

    def measure_staged(folder: Path, receipt: Mapping[str, Any]) -> dict[str, Any]:
        known = fingerprints(receipt) or calibration
        report = measure(source, folder, read, choices=choices, calibration=known, quiet=quiet)
        if picture is not None:
            write_plot(report, picture)
        said = () if quiet else (report.summary, *report.caveats())
        for line in (*said, *report.findings()):
            tell(line)
        return report.as_json()

    return measure_staged


def measure_folder(
    folder: Path,
    named: str | None,
    revision: str | None,
    text: str | None,
    plot: str | None,
    *,
    choices: Choices,
    quiet: bool,
) -> Report:
    """Measure a finished folder.

    Args:
        folder: The folder.
        named: Its source; the one that its receipt names when None.
        revision: A revision of it on its hub.
        text: The text; our sample when None.
        plot: Where to draw the layers' errors, if anywhere.
        choices: What the user says of the source beside its name.
        quiet: Show no progress.

    Raises:
        FerryError: see `measure`; there is no matplotlib to draw with.
        SourceError: nothing says what the source is, or it is not there.
    """
    picture = check_plot(plot)
    if not folder.is_dir():
        raise SourceError(folder, "is not a folder", "give a model folder")
    read = read_text(Path(text) if text is not None else None, "--text")
    path = file_in(folder, FILE)
    receipt = read_json_object(path, SourceError, _LIMIT) if path.is_file() else {}
    if receipt.get("adapter"):
        what = "tells of an adapter that is fused into the folder, and of which the source has none"
        raise SourceError(path, what, "leave --quality out")
    known = fingerprints(receipt)
    check_disjoint(known, read, "--text")
    if named is None:
        try:
            named, revision = source_of(folder)
        except SourceError as error:
            raise SourceError(error.where, error.what, "name it with --reference") from error
    source = resolve_source(named, revision, quiet=quiet, code=choices.trust_remote_code)
    report = measure(source, folder, read, choices=choices, calibration=known, quiet=quiet)
    if picture is not None:
        write_plot(report, picture)
    return report


def fingerprints(receipt: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """What a receipt records of the texts that the model was calibrated on."""
    calibration = receipt.get("calibration")
    text = calibration.get("text") if isinstance(calibration, Mapping) else None
    if text is None:
        return ()
    if not _is_fingerprint(text):
        raise FerryError(FILE, "records a calibration text that can't be read", "convert it again")
    return (text,)


def _is_fingerprint(text: object) -> bool:
    if not isinstance(text, Mapping) or not isinstance(text.get("characters"), int):
        return False
    sketch = text.get("sketch")
    return isinstance(sketch, list) and all(
        isinstance(each, str) and len(each) == 16 and not set(each) - set("0123456789abcdef")
        for each in sketch
    )
