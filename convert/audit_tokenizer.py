"""Checks the files with which a folder turns text into ids and back, and nothing of them runs.

Owns the checks of tokenizer, chat templates and generation config. Templates are parsed
by jinja2's parser alone. Knows nothing of weights beyond the number of embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint import disk
from checkpoint.folder import GENERATION_CONFIG, file_in, files_like
from checkpoint.json_file import quoted, read_json_object
from checkpoint.tensors import TensorRef
from checkpoint.tokenizer_files import check_tokenizer
from configs.errors import ModelConfigError, TemplateError
from configs.resolve import Layers
from convert.audit_findings import Findings

if TYPE_CHECKING:
    from jinja2 import Environment

_EMBEDDINGS = (
    *("embed_tokens", "wte", "embedding", "embed_in", "word_embeddings", "tok_embeddings"),
    "embeddings",
)
# No template is longer; the parser's memory grows with it.
_TEMPLATE_BYTES = 4_000_000
_SHOWN = 3


def embedding_rows(tensors: Mapping[str, TensorRef]) -> int | None:
    """Rows of the input embeddings, packed or not, when they have one of the usual names."""
    rows = [
        ref.shape[0]
        for name, ref in tensors.items()
        if name.endswith(".weight") and name.split(".")[-2] in _EMBEDDINGS and len(ref.shape) == 2
    ]
    return max(rows, default=None)


def check_ids(folder: Path, rows: int | None, findings: Findings) -> None:
    """Check the tokenizer's ids, and that the embedding has a row for each."""
    with findings.checking("tokenizer"):
        found = check_tokenizer(folder, rows)
        if found.highest_id is None:
            detail = f"{found.main} is there; its format hides its ids"
        elif rows is None:
            detail = f"{found.main}, ids up to {found.highest_id:,}; the embedding was not found"
        else:
            detail = f"{found.main}, ids up to {found.highest_id:,} for {rows:,} embeddings"
        if found.beyond:
            named = ", ".join(found.beyond[:_SHOWN])
            findings.warn(
                f"the embedding has no row for {len(found.beyond)} special tokens: {named}"
            )
        findings.passed("tokenizer", detail)


def check_generation_config(folder: Path, findings: Findings) -> None:
    """Refuse what `infer` would refuse of generation_config.json."""
    with findings.checking("generation"):
        path = file_in(folder, GENERATION_CONFIG)
        if not path.is_file():
            findings.passed("generation", f"there is no {GENERATION_CONFIG}, which need not be")
            return
        recommended = read_json_object(path, ModelConfigError)
        Layers().with_generation_config(recommended, path).resolve()
        findings.passed("generation", GENERATION_CONFIG)


def check_templates(folder: Path, findings: Findings) -> None:
    """Parse every chat template of the folder."""
    count = 0
    with findings.checking("template"):
        for where, source in _templates(folder):
            count += 1
            with findings.checking("template"):
                parse_template(where, source)
        detail = f"{count} parsed, none run" if count else "there is none, which need not be"
        findings.passed("template", detail)


def _templates(folder: Path) -> Iterator[tuple[str, str]]:
    """Where each template stands, and its text."""
    for name in files_like(folder, ("chat_template.jinja", "additional_chat_templates/*.jinja")):
        path = file_in(folder, name)
        try:
            yield str(path), disk.read_whole(path, _TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"is not UTF-8 (byte {error.start})"
            raise TemplateError(path, what, "save it as UTF-8") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = file_in(folder, name)
        if path.is_file():
            given = read_json_object(path, TemplateError).get("chat_template")
            yield from ((str(path), source) for source in _sources(given, path))


def _sources(given: Any, path: Path) -> Iterator[str]:
    """The texts of one template, or of a list of named ones."""
    named = (
        [item.get("template") for item in given if isinstance(item, dict)]
        if isinstance(given, list)
        else [given]
    )
    for source in named:
        if isinstance(source, str):
            if len(source) > _TEMPLATE_BYTES:
                raise TemplateError(path, f"has a chat template of {len(source):,} characters")
            yield source
        elif source is not None:
            raise TemplateError(path, "chat_template is not text", "correct the file")


def template_problems(folder: Path) -> Iterator[str]:
    """What is wrong with each chat template of the folder, a line each."""
    try:
        for where, source in _templates(folder):
            try:
                parse_template(where, source)
            except TemplateError as error:
                yield f"{error.where}: {error.what}"
    except TemplateError as error:
        yield f"{error.where}: {error.what}"


def parse_template(where: str, source: str) -> None:
    """See that a chat template can be parsed; nothing of it runs.

    Args:
        where: Where it stands, for the message.
        source: Its text.

    Raises:
        TemplateError: It can't be.
    """
    from jinja2.exceptions import TemplateSyntaxError

    try:
        _parser().parse(source)
    except TemplateSyntaxError as error:
        message = quoted(error.message or "not a template")[1:-1]
        raise TemplateError(f"{where}:{error.lineno}", message, "correct the template") from error
    except RecursionError as error:
        raise TemplateError(where, "is nested too deep", "correct the template") from error


def _parser() -> Environment:
    """jinja2's parser with the tags that chat templates use; it compiles and runs nothing."""
    from jinja2 import Environment, nodes
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.parser import Parser

    class GenerationTag(Extension):
        """`{% generation %}`, which marks the assistant's words for training."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Environment(extensions=[LoopControlExtension, GenerationTag])
