"""Several quantizations of one source, made one after another, measured, and removed.

In a folder of the sweep's own: `sweep.json` with what was found, written anew after each, so that
a sweep goes on where it was stopped; and, while one is made and measured, that one. Owns this
order and what is kept. Which quantizations there are is `sweep_specs`' to say, the figures are
those of a quality report, and the table is `sweep_report`'s.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from checkpoint import disk
from checkpoint.json_file import read_json_object
from checkpoint.source import SourceFolder, resolve_source
from configs import __version__
from configs.errors import FerryError, SourceError, UsageError
from configs.resolve import Layers, Resolved
from convert.calibration.text import CalibrationText
from convert.destination import Destination, check_apart, check_destination, clear, held
from convert.pipeline import convert
from convert.prepare import Prepared, choices_of, prepare
from convert.progress import progress_bar
from convert.proof.progress import told_progress
from convert.quality.command import fingerprints
from convert.quality.measure import measure
from convert.quality.plot import check_plot
from convert.quality.sweep_plot import write_sweep_plot
from convert.quality.sweep_report import Result, Sweep, told
from convert.quality.sweep_specs import FLAG, base_of, check_beside, options_of, read_specs
from convert.quality.texts import Text, check_disjoint, read_text

FILE = "sweep.json"
_IN_HAND = "being-measured"
_LIMIT = 100_000_000
_OTHER = "name another folder with --mlx-path, or start over with --no-resume"


@dataclass(frozen=True)
class _Work:
    """What every quantization of a sweep is made and measured with."""

    source: SourceFolder
    text: Text
    destination: Destination
    quiet: bool
    resume: bool
    tell: Callable[[str], None]
    warn: Callable[[str], None]
    warned: set[str]


def sweep(args: argparse.Namespace, layers: Layers, tell: Callable[[str], None]) -> Sweep:
    """Measure all quantizations that `--sweep` names.

    One that fails is told of at the end, and tried again by the next run.

    Args:
        args: The command line.
        layers: The settings on it.
        tell: Told what is done, a line at a time.

    Raises:
        ConfigError: values of a quantization don't go together.
        DestinationError: another process is at work in the folder.
        FerryError: the first that went wrong, where none was measured.
        UsageError: the flags contradict each other; or what is in the folder was found on
            another source or text.
    """
    specs = read_specs(args.sweep)
    check_beside(args, layers, specs)
    base = base_of(layers)
    options = {spec.name: options_of(layers, spec) for spec in specs}
    if base.model.source is None:
        raise UsageError("--hf-path", "no source is given", "give a local folder or a hub id")
    picture = check_plot(args.plot)
    text = read_text(Path(args.text) if args.text is not None else None, "--text")
    folder = _folder(base)
    named, revision = base.model.source, base.model.revision
    code = base.tokenizer.trust_remote_code
    source = resolve_source(named, revision, quiet=args.quiet, code=code)
    destination = Destination(folder / _IN_HAND, force=True)
    check_apart(destination, source.path)
    disk.make_folder(folder, parents=True, exist_ok=True)
    check_destination(destination.path, force=True)
    said: Callable[[str], None] = (lambda line: None) if args.quiet else tell
    work = _Work(source, text, destination, args.quiet, not args.no_resume, said, tell, set())
    with held(Destination(folder / FILE, force=True)):
        made_of = {"source": _source(source), "text": text.sha256}
        kept = _kept(folder, made_of) if work.resume else {}
        found, failed = _measured(work, options, kept, folder / FILE, made_of)
    some = next(iter(found.values()))["quality"]
    result = Sweep(
        source=named,
        text=text.name,
        text_sha256=text.sha256,
        tokens=some["tokens"],
        source_perplexity=some["source_perplexity"],
        results=tuple(_result(spec.name, found[spec.name]) for spec in specs if spec.name in found),
        failed=failed,
        file=str(folder / FILE),
    )
    if picture is not None:
        write_sweep_plot(result, picture)
    return result


def _measured(
    work: _Work,
    options: Mapping[str, Resolved],
    kept: Mapping[str, Any],
    path: Path,
    made_of: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """What was found and what went wrong, by spec; kept is what still holds of `kept`."""
    found: dict[str, Any] = {}
    others = dict(kept)  # of specs that this run does not name: they stay in the file
    failed: dict[str, str] = {}
    first: FerryError | None = None
    for name, chosen in options.items():
        try:
            digest = _digest(chosen)
            if others.get(name, {}).get("options") == digest:
                found[name] = others[name]
                work.tell(f"{name}: measured before")
                continue
            with _in_hand(work.destination):
                found[name] = {"options": digest, **_one(work, chosen)}
        except FerryError as error:
            first = first or error
            failed[name] = f"{error.where}: {error.what}"  # its mend is for one conversion
            work.tell(f"{name}: {failed[name]}")
            continue
        others[name] = found[name]
        content = {"made_of": made_of, "results": others}
        disk.replace_whole(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
        result = _result(name, found[name])
        kl = told(result.figures["kl_nats"]["mean"])
        work.tell(f"{name}: {result.bits_per_weight:.3f} bits per weight, KL {kl}")
    with held(work.destination):
        clear(work.destination)  # what a failed one has left
    if first is not None and not found:
        raise type(first)(first.where, first.what) from first
    return found, failed


@contextmanager
def _in_hand(destination: Destination) -> Iterator[None]:
    """Remove what was made once it is measured; what was left of a killed sweep before that."""
    if disk.is_there(destination.path):
        disk.remove_tree(destination.path)
    yield
    disk.remove_tree(destination.path)


def _one(work: _Work, options: Resolved) -> dict[str, Any]:
    """Make one, measure it, and leave it in its place."""
    quiet = work.quiet
    bar = partial(told_progress, quiet=quiet)
    prepared = prepare(work.source, options, bar=bar)
    _check_text(prepared, work.text)
    for warning in prepared.warnings:
        if warning not in work.warned:  # most are the source's, and the same for all
            work.warn(f"warning: {warning}")
            work.warned.add(warning)

    def measure_staged(folder: Path, receipt: Mapping[str, Any]) -> dict[str, Any]:
        return measure(
            work.source,
            folder,
            work.text,
            choices=choices_of(options),
            calibration=fingerprints(receipt),
            rounding=False,
            quiet=quiet,
        ).as_json()

    receipt = convert(
        prepared,
        options,
        work.destination,
        lambda total: progress_bar(total, quiet=quiet),
        resume=work.resume,
        note=work.tell,
        measure=measure_staged,
    )
    return {name: receipt[name] for name in ("tensor_bytes", "bits_per_weight", "quality")}


def _check_text(prepared: Prepared, text: Text) -> None:
    """Refuse before anything is made what a report would refuse at the end."""
    if isinstance(prepared.calibration, CalibrationText):
        check_disjoint((prepared.calibration.recorded,), text, "--text")


def _result(spec: str, found: Mapping[str, Any]) -> Result:
    quality = found["quality"]
    figures = {name: value for name, value in quality["written"].items() if name != "layers"}
    return Result(spec, quality["form"], found["tensor_bytes"], found["bits_per_weight"], figures)


def _folder(base: Resolved) -> Path:
    """The sweep's folder: absent, empty, or one of a sweep.

    Raises:
        UsageError: it holds something else.
    """
    # A path in a file is where the model goes, and no sweep.
    named = base.model.path if base.origin("model.path").startswith("--") else None
    path = named or base.default_folder("sweep")
    folder = check_destination(path, force=True, make_parent=named is None).path
    if disk.is_there(folder) and not (
        disk.is_folder(folder)
        and (disk.is_there(folder / FILE) or not _visible(disk.list_folder(folder)))
    ):
        what = f"{folder} is no folder of a sweep"
        raise UsageError("--mlx-path", what, "name a new folder")
    return folder


def _visible(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def _kept(folder: Path, made_of: Mapping[str, str]) -> dict[str, Any]:
    """What an earlier run has found.

    Raises:
        SourceError: the file can't be read.
        UsageError: it was found on something else.
    """
    path = folder / FILE
    if not disk.is_there(path):
        return {}
    content = read_json_object(path, SourceError, _LIMIT)
    before, results = content.get("made_of"), content.get("results")
    if not isinstance(before, dict) or not isinstance(results, dict):
        raise SourceError(path, "is not of a sweep", _OTHER)
    for name, digest in made_of.items():
        if before.get(name) != digest:
            raise UsageError(FLAG, f"{path} was found on another {name}", _OTHER)
    return {name: found for name, found in results.items() if isinstance(found, dict)}


def _digest(options: Resolved) -> str:
    """Of what a quantization depends on, beside source and text to measure on."""
    table = options.convert
    versions = [importlib.metadata.version(name) for name in ("mlx", "mlx-lm")]
    of_source = asdict(choices_of(options))  # such as the step of a nanochat folder
    machine = [platform.machine(), str(mx.default_device())]
    content = [asdict(table), of_source, *versions, __version__, *machine]
    if isinstance(table.calibrate, Path):
        content.append(hashlib.sha256(disk.read_whole(table.calibrate, _LIMIT)).hexdigest())
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


def _source(source: SourceFolder) -> str:
    """A commit of the hub, or the files as they are: their names, sizes and times."""
    if source.commit is not None:
        return f"{source.repo_id}@{source.commit}"
    digest = hashlib.sha256(str(source.path.resolve()).encode())
    for name in sorted(disk.list_folder(source.path)):
        path = source.path / name
        if not disk.is_folder(path):
            digest.update(json.dumps([name, disk.size_and_time(path)]).encode())
    return digest.hexdigest()
