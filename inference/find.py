"""Which model a command line means, opened and loaded.

Owns the order: the flag, the config's folder, what `convert` made of the config's source, the
source itself. Says what a user should know of the model on the way.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from configs.command import note, warn
from configs.errors import UsageError

if TYPE_CHECKING:
    from configs.resolve import Layers, Resolved
    from inference.load import LoadedModel
    from inference.session import Session


def open_model(
    args: argparse.Namespace, layers: Layers, settings: Resolved, *, need_tokenizer: bool = True
) -> tuple[str, Session]:
    """The model's name, as the user gave it, and its folder opened and checked.

    Raises:
        UsageError: no model is named, or it is not converted yet.
        SourceError: the folder is not whole.
        HubError: it can't be had from the hub.
    """
    from inference.session import open_session, with_recommendations

    name, folder = _find(args, settings)
    settings = with_recommendations(layers, folder)
    session = open_session(folder, settings, need_tokenizer=need_tokenizer)
    if not args.quiet:
        for warning in (*settings.warnings, *session.folder.catalog.warnings):
            warn(warning)
    if args.verbose:
        template = session.template
        note(f"folder: {session.folder.path}")
        if (adapter := session.folder.adapter) is not None:
            beside = {update.module for update in session.folder.updates.values()}
            merged = len(adapter.pairs) - len(beside)
            told = f", {merged} of them merged into weights" if merged else ""
            note(f"adapter: {adapter.path} ({adapter.format}), {len(adapter.pairs)} modules{told}")
        note(f"chat template: {'none' if template is None else template.where}")
        note(f"context: {session.context or 'not limited'}")
    return name, session


def load_model(args: argparse.Namespace, session: Session, length: int) -> LoadedModel:
    """Read the weights of an opened model, for texts of at most `length` tokens."""
    loaded = session.load(args.device, args.dtype, length)
    if (advice := loaded.placement.advice(loaded.dtype)) is not None and not args.quiet:
        warn(advice)
    if loaded.kept_cache and not args.quiet:
        note(_kept_cache(loaded.kept_cache))
    draft = session.settings.model.draft
    if draft is not None and not args.score:
        from dataclasses import replace

        from inference.draft_folder import load_draft

        loaded = replace(loaded, draft=load_draft(draft, session, loaded, length))
    return loaded


def _kept_cache(kept: Mapping[int, str]) -> str:
    """Which layers `--kv-bits` leaves as they are."""
    kinds = dict.fromkeys(kept.values())
    told = [
        f"{', '.join(str(layer) for layer, found in kept.items() if found == kind)} ({kind})"
        for kind in kinds
    ]
    return f"--kv-bits leaves these layers as they are: {'; '.join(told)}"


def recommended(args: argparse.Namespace, layers: Layers, settings: Resolved) -> Resolved:
    """The settings that a run would have, as far as the model is here already."""
    if args.model is None and settings.model.path is None and settings.model.source is None:
        return settings
    from inference.session import with_recommendations

    folder = Path(_name(args, settings)[0])
    return with_recommendations(layers, folder) if folder.is_dir() else settings


def _find(args: argparse.Namespace, settings: Resolved) -> tuple[str, Path]:
    name, revision = _name(args, settings)
    if args.model is None and settings.model.path is None and Path(name) == _local(settings):
        mend = f"make it with convert --config {args.config}" if args.config else "give --model"
        raise UsageError("--model", f"the model in {name} is not converted yet", mend)
    from checkpoint.source import resolve_source

    return name, resolve_source(name, revision, quiet=args.quiet).path


def _local(settings: Resolved) -> Path | None:
    """The source, if it is a folder here."""
    source = settings.model.source
    return Path(source) if source is not None and Path(source).is_dir() else None


def _name(args: argparse.Namespace, settings: Resolved) -> tuple[str, str | None]:
    """The model's name or path, and its revision on the hub."""
    model = settings.model
    if args.model is not None:
        return str(args.model), None
    if model.path is not None:
        return str(model.path), None
    if model.source is None:
        raise UsageError("--model", "no model given", "give a folder or a hub id, or a --config")
    converted = settings.default_folder(settings.convert.dtype or "bfloat16")
    if converted.is_dir():
        return str(converted), None
    return model.source, model.revision
