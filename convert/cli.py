"""The command `convert`: flags in, a model folder out, its path on stdout."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from configs.command import note, run, say, warn
from configs.errors import UsageError
from configs.mixtures import MIXTURES
from convert.flags import parser as parser
from convert.mixed.options import check_mixture
from convert.quality.options import ALLOWED_BESIDE, check_quality, quality_folder

if TYPE_CHECKING:
    from checkpoint.adapters.adapter import Adapter
    from checkpoint.source import SourceFolder
    from configs.resolve import Layers, Resolved
    from convert.consume import Consumed
    from convert.pipeline import Measure, Prove
    from convert.prepare import Prepared

_ONE = "leave one of them out"
_QUANTIZATION_KEYS = ("bits", "group_size", "mode", "method", "calibrate", *MIXTURES, "layers")
_CONVERSION_FLAGS = ("force", "dry_run", "no_resume", "consume_source", "fuse_adapter")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `convert`; gives the exit code."""
    return run(_convert, argv)


def _convert(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    from configs.loader import read_layers

    layers = read_layers(args)
    if args.sweep is not None:
        return _sweep(args, layers)
    resolved = layers.resolve()
    _check_options(resolved, args)
    if args.show_config:
        print(resolved.show(), end="")
        return 0
    if args.diff is not None:
        return _diff(args)
    if args.verify is not None:
        return _verify(args, resolved)
    if quality_folder(args) is not None:
        return _quality(args, resolved)
    if resolved.model.source is None:
        raise UsageError("--hf-path", "no source is given", "give a local folder or a hub id")
    return _make(args, resolved)


def _make(args: argparse.Namespace, resolved: Resolved) -> int:
    """Convert, and what was asked for beside it."""
    from checkpoint.source import resolve_source
    from convert.destination import check_apart, check_destination, check_not_held
    from convert.pipeline import convert
    from convert.prepare import prepare
    from convert.progress import progress_bar
    from convert.proof.progress import told_progress
    from convert.show import plan_table, summary

    table = resolved.convert
    may_exist = args.force or args.dry_run
    _check_upload(args)
    if (known := _path(resolved, table.dtype)) is not None:
        early = check_destination(known, force=may_exist, make_parent=known != resolved.model.path)
        if not args.dry_run:
            check_not_held(early)
    _check_torch(args)
    adapter = _adapter(args)
    consumed = _consumed(args, resolved, known)
    if consumed is None:
        named = str(resolved.model.source)
        source = resolve_source(
            named,
            resolved.model.revision,
            quiet=args.quiet,
            code=resolved.tokenizer.trust_remote_code,
        )
        bar = partial(told_progress, quiet=args.quiet)
        prepared = prepare(source, resolved, adapter=adapter, bar=bar)
    else:
        source = consumed.remote.source
        prepared = prepare(source, resolved, consumed.catalog, consumed.fetch, adapter)
    path = known or resolved.default_folder(prepared.dtype or "mlx")
    destination = check_destination(path, force=may_exist, make_parent=path != resolved.model.path)
    check_apart(destination, source.path)
    if prepared.recognised and not args.quiet:
        note(f"{source.path}: {prepared.recognised}")
    for warning in prepared.warnings:
        warn(warning)
    if args.verbose:
        for line in prepared.model_map.notes:
            note(line)
    if args.dry_run:
        plan = prepared.plan
        print(json.dumps(plan.as_json()) if args.json else plan_table(plan))
        return 0
    prove, measure = _prover(args, source), _measurer(args, resolved, prepared)
    if consumed is not None:
        consumed.check_room(prepared.plan, destination)
    receipt = convert(
        prepared,
        resolved,
        destination,
        lambda total: progress_bar(total, quiet=args.quiet),
        resume=not args.no_resume,
        note=(lambda line: None) if args.quiet else note,
        supply=consumed,
        prove=prove,
        measure=measure,
    )
    line = json.dumps(receipt, ensure_ascii=False) if args.json else str(destination.path)
    say(line, f"{destination.path} is whole all the same")
    if not args.quiet:
        note(summary(receipt, destination.path))
    if args.upload_repo is not None:
        _upload(args, destination.path)
    return 0


def _adapter(args: argparse.Namespace) -> Adapter | None:
    """What `--fuse-adapter` names, read and checked."""
    if args.fuse_adapter is None:
        return None
    from checkpoint.adapters.read import read_adapter

    return read_adapter(Path(args.fuse_adapter))


def _consumed(args: argparse.Namespace, resolved: Resolved, known: Path | None) -> Consumed | None:
    """The source as `--consume-source` has it, if that was asked for."""
    if not args.consume_source:
        return None
    from convert.consume import open_consumed
    from convert.destination import check_destination

    if resolved.tokenizer.trust_remote_code:
        what = "does not go with --trust-remote-code"
        raise UsageError("--consume-source", what, _ONE)
    if known is None:
        raise UsageError("--consume-source", "needs to know its destination", "add --mlx-path")
    may_exist = args.force or args.dry_run
    destination = check_destination(known, force=may_exist, make_parent=True)
    model = resolved.model
    told = (lambda line: None) if args.quiet else note
    return open_consumed(str(model.source), model.revision, destination, told, quiet=args.quiet)


def _verify(args: argparse.Namespace, resolved: Resolved) -> int:
    from convert.audit import audit

    _check_upload(args)
    _check_torch(args)
    folder = Path(args.verify)
    found = audit(folder, quiet=args.quiet)
    if not args.json:
        print(found.text())
    proof = None
    if args.prove and found.problems:
        warn("--prove: nothing was proven, since the folder is damaged")
    elif args.prove:
        from convert.proof.command import prove_folder

        model = resolved.model
        proof = prove_folder(folder, model.source, model.revision, quiet=args.quiet)
        if not args.json:
            print(proof.text())
    if args.json:
        told = found.as_json() | ({"proof": proof.as_json()} if proof else {})
        print(json.dumps(told, ensure_ascii=False))
    if found.problems or (proof is not None and not proof.ok):
        return 1
    if args.upload_repo is not None:
        _upload(args, Path(args.verify))
    return 0


def _diff(args: argparse.Namespace) -> int:
    from convert.diff import diff

    one, other = args.diff
    found = diff(Path(one), Path(other), quiet=args.quiet)
    print(json.dumps(found.as_json(), ensure_ascii=False) if args.json else found.text())
    return 0 if found.equal else 1


def _check_torch(args: argparse.Namespace) -> None:
    if args.prove:
        from convert.proof.reference import require_torch

        require_torch()


def _prover(args: argparse.Namespace, source: SourceFolder) -> Prove | None:
    """What holds the staged folder against its source, if that was asked for."""
    if not args.prove:
        return None
    from convert.proof.command import prover

    return prover(source, quiet=args.quiet, tell=note)


def _measurer(args: argparse.Namespace, resolved: Resolved, prepared: Prepared) -> Measure | None:
    """What measures the staged folder beside its source, if that was asked for."""
    if args.quality is None:
        return None
    from convert.prepare import choices_of
    from convert.quality.command import measurer

    text = prepared.calibration
    return measurer(
        prepared.source,
        args.text,
        args.plot,
        choices=choices_of(resolved),
        calibration=() if text is None else (text.recorded,),
        quiet=args.quiet,
        tell=note,
    )


def _quality(args: argparse.Namespace, resolved: Resolved) -> int:
    from convert.prepare import choices_of
    from convert.quality.command import measure_folder

    report = measure_folder(
        Path(args.quality),
        args.reference,
        resolved.model.revision,
        args.text,
        args.plot,
        choices=choices_of(resolved),
        quiet=args.quiet,
    )
    print(json.dumps(report.as_json(), ensure_ascii=False) if args.json else report.text_table())
    return 0


def _sweep(args: argparse.Namespace, layers: Layers) -> int:
    from convert.quality.sweep import sweep

    found = sweep(args, layers, note)
    print(json.dumps(found.as_json(), ensure_ascii=False) if args.json else found.text_table())
    return 1 if found.failed else 0


def _check_upload(args: argparse.Namespace) -> None:
    if args.upload_repo is not None:
        from convert.upload import check_upload

        check_upload(args.upload_repo, private=args.private)


def _upload(args: argparse.Namespace, folder: Path) -> None:
    from convert.upload import upload

    note(f"uploaded: {upload(folder, args.upload_repo, private=args.private, quiet=args.quiet)}")


def _check_options(resolved: Resolved, args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, before anything is read."""
    if not resolved.convert.quantize:
        for key in _QUANTIZATION_KEYS:
            origin = resolved.origin(f"convert.{key}")
            if origin.startswith("--"):
                raise UsageError(origin, "has no effect without --quantize", "add --quantize")
    if args.show_config and args.json:
        raise UsageError(
            "--json", "does not go with --show-config, which prints TOML", "leave it out"
        )
    if args.dry_run and args.force:
        raise UsageError("--force", "replaces nothing with --dry-run", _ONE)
    check_quality(args, resolved)
    check_mixture(resolved, consumes=args.consume_source)
    modes = ("--diff", args.diff), ("--verify", args.verify), ("--quality", quality_folder(args))
    for flag, mode in modes:
        if mode is not None:
            _refuse_beside(flag, resolved, args)
    if args.prove and args.dry_run:
        raise UsageError("--prove", "nothing is made with --dry-run", _ONE)
    if args.prove and args.consume_source:
        raise UsageError(
            "--prove", "needs the whole source, which --consume-source releases", "leave one out"
        )
    if resolved.convert.calibrate is not None and args.consume_source:
        raise UsageError(
            resolved.origin("convert.calibrate"),
            "needs the whole source, which --consume-source releases",
            "leave one out",
        )
    if args.prove and args.fuse_adapter is not None:
        raise UsageError(
            "--prove", "holds the result against the source, to which an adapter is added", _ONE
        )
    if args.private and args.upload_repo is None:
        raise UsageError("--private", "means nothing without --upload-repo", "add it")
    if args.dry_run and args.upload_repo is not None:
        raise UsageError("--upload-repo", "nothing is made with --dry-run", _ONE)


def _refuse_beside(mode: str, resolved: Resolved, args: argparse.Namespace) -> None:
    """Refuse the flags of a conversion where none is made."""
    given = [name for name in _CONVERSION_FLAGS if getattr(args, name)]
    if mode != "--verify":
        given += [name for name in ("verify", "prove", "upload_repo") if getattr(args, name)]
    if mode != "--quality" and args.quality is not None:
        given.append("quality")
    flags = [f"--{name.replace('_', '-')}" for name in given]
    allowed: tuple[str, ...] = ()
    if args.prove and mode == "--verify":
        allowed = ("model.source", "model.revision")
    if mode == "--quality":
        allowed = ALLOWED_BESIDE
    flags += [
        origin
        for key, origin in resolved.origins.items()
        if key not in allowed and origin.startswith("--") and not origin.startswith("--set")
    ]
    if flags:
        raise UsageError(flags[0], f"means nothing with {mode}", "leave it out")


def _path(resolved: Resolved, dtype: str | None) -> Path | None:
    """Where the result goes; None while its name hangs on a dtype not yet known."""
    if resolved.model.path is not None:
        return resolved.model.path
    if resolved.convert.quantize or dtype is not None:
        return resolved.default_folder(dtype or "")
    return None
