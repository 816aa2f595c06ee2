"""The lines of keys: against texts with known lines, and against the parser on generated ones."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from configs.checks import KeyPath
from configs.positions import DEEPEST, KeyLines, TooDeepError

TEXT = '''# a comment with [brackets] and "quotes"
top = 1
[model]          # [not.this]
name = "a = b"
"sour\\u0063e" = 'c # d'

[convert]
text = """
bits = 99
[memory]
"""
more = \'\'\'
"""
limit = 1\'\'\'
bits = 7
point.x = 1.5
point."y.z" = 1979-05-27T07:32:00Z
[[convert.layers]]
pattern = "a"
[[convert.layers]]
keep = true
pattern = "b]"
[convert.layers.deeper]
bits = 3
[generate]
rules = [ { pattern = "x" },
          { keep = true, nested = { deep = [
              1, { deepest = "}" } ] } } ]
last = [
]
'''

LINES: dict[KeyPath, int] = {
    ("top",): 2,
    ("model",): 3,
    ("model", "name"): 4,
    ("model", "source"): 5,
    ("convert",): 7,
    ("convert", "text"): 8,
    ("convert", "more"): 12,
    ("convert", "bits"): 15,
    ("convert", "point"): 16,
    ("convert", "point", "x"): 16,
    ("convert", "point", "y.z"): 17,
    ("convert", "layers"): 18,
    ("convert", "layers", 0, "pattern"): 19,
    ("convert", "layers", 1): 20,
    ("convert", "layers", 1, "keep"): 21,
    ("convert", "layers", 1, "pattern"): 22,
    ("convert", "layers", 1, "deeper"): 23,
    ("convert", "layers", 1, "deeper", "bits"): 24,
    ("generate", "rules"): 26,
    ("generate", "rules", 0, "pattern"): 26,
    ("generate", "rules", 1, "keep"): 27,
    ("generate", "rules", 1, "nested", "deep"): 27,
    ("generate", "rules", 1, "nested", "deep", 1, "deepest"): 28,
    ("generate", "last"): 29,
}


@pytest.mark.parametrize(("path", "line"), LINES.items(), ids=str)
def test_lines_of_keys(path: KeyPath, line: int) -> None:
    tomli.loads(TEXT)  # the text is what it should be
    assert KeyLines(TEXT)[path] == line


def test_a_key_without_a_line_has_that_of_the_key_around_it() -> None:
    lines = KeyLines(TEXT)
    assert lines[("convert", "layers", 1, "nothing", "here")] == 20
    assert lines[("nowhere",)] == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\na = " + "[" * (DEEPEST + 1), 2),
        ("\n\na = " + "{b=" * (DEEPEST + 1), 3),
        ("\n[" + ".".join("a" * (DEEPEST + 1)) + "]", 2),
        (".".join("a" * (DEEPEST + 1)) + " = 1", 1),
    ],
)
def test_what_is_too_deep_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(TooDeepError) as caught:
        KeyLines(text)
    assert caught.value.line == line


KEYS = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,4}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), max_size=4),
)
SCALARS = st.one_of(
    st.integers(-9, 9).map(str),
    st.floats(0, 9).map(str),
    st.sampled_from(["true", "1979-05-27T07:32:00Z", "''", '""', "'''\n'a''\n'''"]),
    st.sampled_from(['"""\na = 1\n"""', '"""a""""', '"\\""', '"#["', "'\\'", '"""\\""""""']),
)


def quoted(key: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]+", key):
        return key
    return f"'{key}'" if key.isprintable() and "'" not in key else escaped(key)


def escaped(key: str) -> str:
    return '"' + "".join(f"\\U{ord(character):08x}" for character in key) + '"'


@st.composite
def values(draw: st.DrawFn, depth: int = 0) -> str:
    kind = draw(st.integers(0, 5 if depth < 3 else 3))
    if kind == 4:
        items = draw(st.lists(values(depth + 1), max_size=3))
        between = draw(st.sampled_from([",", " ,\n ", ", # ]\n"]))
        return f"[{between.join(items)}\n]"
    if kind == 5:
        keys = draw(st.lists(KEYS, unique=True, max_size=3))
        return "{" + ", ".join(f"{quoted(key)} = {draw(values(depth + 1))}" for key in keys) + "}"
    return draw(SCALARS)


@st.composite
def documents(draw: st.DrawFn) -> str:
    lines = [f"{quoted(key)} = {draw(values())}" for key in draw(st.lists(KEYS, max_size=3))]
    for _ in range(draw(st.integers(0, 4))):
        header = ".".join(quoted(key) for key in draw(st.lists(KEYS, min_size=1, max_size=3)))
        lines.append(draw(st.sampled_from(["[{}]", "[[{}]] # [x]", "[ {} ]"])).format(header))
        for key in draw(st.lists(KEYS, unique=True, max_size=3)):
            lines.append(f"{quoted(key)}.{quoted(key)} = {draw(values())}")
    return "\n".join(lines)


def keys_of(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """The paths of all keys, and of all elements that are tables, in a parsed document."""
    found: set[KeyPath] = set()
    if isinstance(value, dict):
        items: list[tuple[str | int, Any]] = list(value.items())
        found = {(*path, key) for key in value} | ({path} if path else set())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return found
    return found.union(*(keys_of(item, (*path, key)) for key, item in items))


@given(documents())
def test_the_keys_found_are_those_that_the_parser_finds(text: str) -> None:
    try:
        parsed = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    lines = KeyLines(text)
    assert lines.paths() == keys_of(parsed)
    split = text.split("\n")
    for path in lines.paths():
        last = path[-1]
        if isinstance(last, str):
            spellings = (last, escaped(last)[1:-1])
            assert any(spelling in split[lines[path] - 1] for spelling in spellings)
