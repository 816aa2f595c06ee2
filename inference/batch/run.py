"""A batch from its first row to its last: rows into the engine, records out of it.

Owns that every row gets exactly one record, whatever becomes of it, and the count of
those that failed. How rows share the device is the engine's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from configs.command import warn
from configs.errors import FerryError, RequestError
from inference.batch.fields import Line, line_id, read_line
from inference.batch.output import Rows
from inference.batch.records import Row, failed, make_row
from inference.batch.source import Source
from inference.events import Delta, Failed, Finished, Started
from inference.request import GenerationOptions, Request, TokenRequest
from inference.session import Session
from inference.statistics import Run

if TYPE_CHECKING:
    from inference.engine import Engine
    from inference.prompt_cache import PromptCache

Progress = Callable[[int, int], None]
"""Told how many rows, and how many tokens of answers, were just finished."""


@dataclass
class Batch:
    """Runs the rows of a source.

    Args:
        session: Makes token ids of them.
        source: The rows.
        rows: Takes their records.
        about: What the records share.
        raw: Go on with prompts themselves, without template, where a row does not say.
        progress: Told of rows and tokens.
        failed: Rows that got an error for a record.
        kept: What the rows begin with, in a file.
    """

    session: Session
    source: Source
    rows: Rows
    about: Run
    raw: bool
    progress: Progress
    failed: int = 0
    kept: PromptCache | None = None
    _under_way: dict[str, Row] = field(default_factory=dict)
    _ids: set[str | int] = field(default_factory=set)

    def run(self, engine: Engine, done: int = 0) -> None:
        """Run all rows but the first `done`, which an earlier run has answered.

        Raises:
            DiskError: The input can't be read, or the output not be written.
        """
        requests = self._requests(done)
        if self.kept is not None:
            requests = self.kept.many(engine, requests)
        for event in engine.run(requests):
            row = self._under_way[event.request]
            row.take(event)
            if isinstance(event, Delta | Started):
                continue
            if isinstance(event, Finished | Failed):
                del self._under_way[event.request]
            if isinstance(event, Finished):
                self.progress(0, event.usage.completion_tokens)
            if row.over:
                self.failed += row.error is not None
                for problem in row.unread_calls:
                    warn(f"row {row.index}: {problem}; it is kept as the model said it")
                self.rows.put(row.index, row.record(self.about))
                self.progress(1, 0)

    def _requests(self, done: int) -> Iterator[TokenRequest]:
        """The requests of every row; a row that can't be one is answered at once."""
        token_fields = self.session.token_fields()
        for index, text in enumerate(self.source.lines()):
            value: Any = None
            try:
                value = self.source.parse(text)
                self._claim(line_id(value))
                if index < done:
                    continue
                line = read_line(value)
                requests = self._tokenize(index, line).answers()
            except FerryError as error:
                if index >= done:
                    form = "chat" if isinstance(value, dict) and "custom_id" in value else "own"
                    self.failed += 1
                    record = failed(index, line_id(value), form, error)  # type: ignore[arg-type]
                    self.rows.put(index, record)
                    self.progress(1, 0)
                continue
            several = "n" in line.options or self.session.settings.given("generate.n")
            row = make_row(index, line.id, line.form, requests, token_fields, several=several)
            self._under_way |= dict.fromkeys((request.id for request in requests), row)
            yield from requests

    def _claim(self, id: str | int | None) -> None:
        if id is None:
            return
        if id in self._ids:
            raise RequestError("id", f"{id!r} was given to an earlier row", "name rows apart")
        self._ids.add(id)

    def _tokenize(self, index: int, line: Line) -> TokenRequest:
        table = line.table(self.session.settings.generate)
        options = GenerationOptions.from_table(table)
        try:
            request = self._request(str(index), line, options)
            return self.session.tokenize(request, own_max_tokens="max_tokens" in line.options)
        except RequestError as error:
            if not error.where.startswith("--"):
                raise
            raise RequestError(_fields(error.where), error.what, _fields(error.mend)) from error

    def _request(self, name: str, line: Line, options: GenerationOptions) -> Request:
        if line.messages:
            return Request(name, messages=line.messages, options=options)
        return self.session.request(name, line.text, options, raw=self.raw or line.raw)


def _fields(text: str) -> str:
    """Words about flags as words about the fields of a row."""
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda found: found[1].replace("-", "_"), text)


def count(total: int) -> str:
    """A number of rows in words."""
    return f"{total:,} row{'' if total == 1 else 's'}"
