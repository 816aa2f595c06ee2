"""`infer --batch`: a file of prompts, run on a session, with its count at the end.

Owns what belongs to one batch: which output it goes on with, how much memory its answers
may take, and what is said of it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoint import disk
from checkpoint.folder import CONFIG
from configs.command import note
from configs.errors import DiskError
from inference.batch.output import Printed, Rows, Written, open_output
from inference.batch.progress import progress_bar
from inference.batch.run import Batch, count
from inference.batch.source import Source
from inference.device import kv_budget
from inference.load import LoadedModel
from inference.prompt_cache import PromptCache
from inference.session import Session, describe_run
from inference.statistics import Run
from inference.terminal import Output


def run_batch(
    session: Session,
    loaded: LoadedModel,
    source: Source,
    name: str,
    *,
    output: Path | None,
    raw: bool,
    force: bool,
    quiet: bool,
    kept: PromptCache | None = None,
) -> int:
    """Answer every row; gives the number that failed.

    Args:
        session: The model's.
        loaded: The model.
        source: The rows.
        name: The model, as the user named it.
        output: Where the records go; stdout if None.
        raw: Go on with prompts themselves, without template.
        force: Replace an output that is there.
        quiet: Show no progress and no count.
        kept: What the rows begin with, in a file.

    Raises:
        UsageError: the output is another batch's.
        DiskError: it can't be written, or the rows can't be read.
    """
    memory = session.settings.memory
    engine = session.engine(loaded, max_rows=memory.batch_size)
    weights = loaded.weight_bytes + (0 if loaded.draft is None else loaded.draft.weight_bytes)
    engine.budget_bytes = kv_budget(loaded.placement, weights, memory.limit)
    about = describe_run(name, loaded)
    with _opened(output, _identity(session, source, about, raw), force=force) as rows:
        done, failed = (rows.done, rows.failed) if isinstance(rows, Written) else (0, 0)
        if done and not quiet:
            note(f"going on after row {done:,} of {source.rows:,}, which are written")
        with progress_bar(source.rows, done, quiet=quiet) as tell:
            batch = Batch(session, source, rows, about, raw, tell, failed, kept)
            batch.run(engine, done)
    if kept is not None:
        kept.close()
    if not quiet:
        taken = engine.throughput
        parts = [about.describe(), count(source.rows), f"{batch.failed:,} failed"]
        parts.append(f"{taken.answer_tokens:,} tokens")
        if taken.tokens_per_second is not None:
            parts[-1] += f" at {taken.tokens_per_second:,.1f}/s"
        parts.append(f"up to {taken.most_rows} at once")
        if taken.drafted:
            parts.append(f"{taken.accepted:,} of {taken.drafted:,} guesses were right")
        if taken.cached_tokens:
            parts.append(f"{taken.cached_tokens:,} prompt tokens shared")
        if taken.one_by_one is not None:
            parts.append(f"decoded one by one: {taken.one_by_one}")
        note("; ".join(parts))
    return batch.failed


@contextlib.contextmanager
def _opened(output: Path | None, about: Mapping[str, Any], *, force: bool) -> Iterator[Rows]:
    if output is None:
        yield Printed(Output.stdout())
        return
    written = open_output(output, about, force=force)
    try:
        yield written
    except DiskError:
        with contextlib.suppress(DiskError):
            written.close(finished=False)
        raise
    except BaseException:
        written.close(finished=False)
        raise
    written.close(finished=True)


def _identity(session: Session, source: Source, about: Run, raw: bool) -> dict[str, Any]:
    """All that the answers hang on; another identity is another batch."""
    folder, settings = session.folder, session.settings
    return {
        "input": source.sha256,
        "form": source.form,
        "model": str(folder.path.resolve()),
        "config": hashlib.sha256(disk.read_whole(folder.path / CONFIG, 1 << 30)).hexdigest(),
        "shards": [
            [shard.name, *disk.size_and_time(shard.resolve())] for shard in folder.catalog.shards
        ],
        "device": about.device,
        "dtype": about.dtype,
        "raw": raw,
        "generate": repr(settings.generate),
        "tokenizer": repr(settings.tokenizer),
        "kv_bits": settings.memory.kv_bits,
        "kv_start": settings.memory.kv_start,
        "context": settings.memory.context,
        "load_bits": settings.memory.load_bits,
        "adapter": None if folder.adapter is None else folder.adapter.digest,
    }
