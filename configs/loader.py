"""From `--config`, `--set` and flags to layers of checked settings, each with its place.

It knows where the shipped TOML files are and how a TOML file fails to be read. Which setting wins
is `configs.resolve`'s to say.
"""

from __future__ import annotations

import stat
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from configs.checks import InvalidValue, dotted, nearest, shown
from configs.errors import ConfigError
from configs.keys import KEYS, TABLE_NAMES
from configs.settings import Layer, Setting, refusal

if TYPE_CHECKING:
    from configs.positions import KeyLines
    from configs.resolve import Layers

LARGEST_FILE = 256 * 1024

# Other programs' tables in the same file; MLX-GRPO's trainer reads its own.
PASSED_OVER = frozenset({"mlx_grpo"})

_HERE = Path(__file__).parent
_TOO_DEEP = ("nested too deep", "no key here needs more than a table in a list")


def read_layers(args: Namespace) -> Layers:
    """All that the command line says.

    Args:
        args: What `configs.arguments.Parser` made of it.

    Raises:
        ConfigError: With the file and line, or the flag, that is at fault.
    """
    toml = load_toml(args.config) if args.config is not None else {}
    sets = read_sets(args.set)
    flags = {key: value for key, value in vars(args).items() if isinstance(value, Setting)}

    from configs.resolve import Layers  # wrong usage is told without the cost of the tables

    return Layers(toml=toml, sets=sets, flags=flags)


def shipped() -> list[str]:
    """The names of the TOML files in this package."""
    return sorted(path.stem for path in _HERE.glob("*.toml"))


def load_toml(name_or_path: str) -> Layer:
    """The settings of a shipped file, by name, or of a file, by path.

    What contains a slash or ends in .toml is a path.

    Raises:
        ConfigError: Not found, not readable, not TOML, or not what the schema allows.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path, label = Path(name_or_path), name_or_path
    elif name_or_path in shipped():
        path = _HERE / f"{name_or_path}.toml"
        label = path.name
    else:
        what = f"no shipped config is named {shown(name_or_path)}"
        raise ConfigError("--config", what, f"{_nearest_shipped(name_or_path)}, or give a path")
    return _layer(_read_text(path), label, path.parent.absolute())


def read_sets(items: Iterable[str]) -> Layer:
    """The settings of `--set table.key=value`; of two for one key the last holds.

    Raises:
        ConfigError: Not of that form, an unknown key, or a value that it can't take.
    """
    layer = {}
    for item in items:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError("--set", f"{shown(item)} sets nothing", "write table.key=value")
        origin = f"--set {key}"
        if key not in KEYS:
            raise ConfigError(origin, "unknown key", _nearest_key(key))
        try:
            layer[key] = Setting(KEYS[key].check(_set_value(text)), origin)
        except InvalidValue as error:
            raise refusal(origin, tuple(key.split(".")), error) from error
    return layer


def _set_value(text: str) -> object:
    """A value in TOML's syntax; text that is none stands for itself."""
    import tomli

    try:
        document = tomli.loads(f"value = {text}")
        if len(document) == 1:  # a line break in the text can smuggle more keys in
            return document["value"]
    except (ValueError, RecursionError):
        pass
    if text.lstrip().startswith(("[", "{", '"', "'")):
        # The shell took the inner quotes away; taking the rest as text would be a silent mistake.
        raise InvalidValue(f"{shown(text)} is not TOML", "quote it once more, for the shell")
    return text


def _read_text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(path, "not a file", "give the path of a TOML file")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError as error:
        mend = f"check the path, or name one of {', '.join(shipped())}"
        raise ConfigError(path, "no such file", mend) from error
    except OSError as error:
        raise ConfigError(path, f"can't be read: {error.strerror}", "check the path") from error
    if len(data) > LARGEST_FILE:
        raise ConfigError(path, f"more than {LARGEST_FILE} bytes", "is this the right file?")
    if data.startswith(b"\xef\xbb\xbf"):
        raise ConfigError(f"{path}:1", "a byte order mark", "save it as UTF-8 without BOM")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}", "not UTF-8", "save it as UTF-8") from error


def _layer(text: str, label: str, folder: Path) -> Layer:
    document, lines = _parse(text, label)
    layer = {}
    for table, keys in document.items():
        if table in PASSED_OVER:
            continue
        if table not in TABLE_NAMES:
            place = f"{label}:{lines[(table,)]}"
            raise ConfigError(place, f"{table}: unknown table", _nearest_key(table))
        if not isinstance(keys, dict):
            place = f"{label}:{lines[(table,)]}"
            raise ConfigError(place, f"{table}: {shown(keys)} is not a table", f"write [{table}]")
        for key, value in keys.items():
            place = f"{label}:{lines[(table, key)]}"
            if f"{table}.{key}" not in KEYS:
                what = f"{dotted((table, key))}: unknown key"
                raise ConfigError(place, what, _nearest_key(f"{table}.{key}"))
            try:
                kept = KEYS[f"{table}.{key}"].check(value)
                layer[f"{table}.{key}"] = Setting(_beside(f"{table}.{key}", kept, folder), place)
            except InvalidValue as error:
                place = f"{label}:{lines[(table, key, *error.path)]}"
                raise refusal(place, (table, key), error) from error
    return layer


def _parse(text: str, label: str) -> tuple[dict[str, object], KeyLines]:
    import tomli

    from configs.positions import KeyLines, TooDeepError

    try:
        try:
            document = tomli.loads(text)
        except RecursionError as error:
            KeyLines(text)  # says which line
            raise ConfigError(label, *_TOO_DEEP) from error
        return document, KeyLines(text)
    except TooDeepError as error:
        raise ConfigError(f"{label}:{error.line}", *_TOO_DEEP) from error
    except tomli.TOMLDecodeError as error:
        twice = error.msg == "Cannot overwrite a value"
        what = "a key that is there already" if twice else f"not TOML: {error.msg}"
        line = min(error.lineno, text.rstrip("\n").count("\n") + 1)  # not past the last one
        raise ConfigError(f"{label}:{line}", what, "correct that line") from error
    except ValueError as error:  # Python's own limit on the digits of an integer
        raise ConfigError(label, "a number with too many digits", "shorten it") from error


def _beside(key: str, value: object, folder: Path) -> object:
    """A path in a TOML file counts from that file's folder."""
    if isinstance(value, Path):
        return folder / _home(value)
    if key == "model.source" and str(value).startswith(("./", "../", "~")):
        return str(folder / _home(Path(str(value))))
    return value


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InvalidValue(f"{shown(str(path))}: no such user", "write the whole path") from error


def _nearest_shipped(word: str) -> str:
    names = ", ".join(shipped())
    near = nearest(word, shipped())
    return f"{near} shipped are {names}" if near.endswith("?") else f"shipped are {names}"


def _nearest_key(word: str) -> str:
    """What to say of an unknown table or key, misspelt or put into another table."""
    table, _, key = word.rpartition(".")
    if not table:
        return nearest(word, [*TABLE_NAMES, *PASSED_OVER])
    elsewhere = [known for known in KEYS if known.endswith(f".{key}")]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return nearest(word, [known for known in KEYS if known.startswith(f"{table}.")] or [*KEYS])
