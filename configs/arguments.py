"""The command line of both commands: flags that set schema keys, common flags, errors of one line.

A flag of a schema key is parsed, range-checked and shown with its default by what the schema says
of the key. It knows neither command: what flags there are is each command's to say.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from configs import __version__
from configs.checks import InvalidValue, nearest, shown
from configs.command import say
from configs.errors import UsageError
from configs.keys import KEYS, MODES
from configs.settings import Setting, refusal

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_WIDEST = 100

# Keys whose default depends on the quantization mode, and where it says so.
_OF_MODE = {"convert.bits": "bits", "convert.group_size": "group_sizes"}


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` where argparse would print and leave.

    Args:
        prog: The command's name.
        description: What it does, in a sentence.
        example: A whole command line, for the end of the help.
    """

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} [options]",
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=_formatter,
            allow_abbrev=False,
            add_help=False,
            exit_on_error=False,
        )

    def group(self, title: str) -> argparse._ArgumentGroup:
        """A group of flags in the help."""
        return self.add_argument_group(title)

    def parse_args(  # type: ignore[override]  # no namespace of the caller's: none needs one
        self, args: Sequence[str] | None = None
    ) -> argparse.Namespace:
        """The parsed flags.

        Raises:
            UsageError: An unknown flag, a value that it can't take, or a stray argument.
        """
        try:
            namespace, strays = self.parse_known_args(args)
        except argparse.ArgumentError as error:
            raise self._refused(error) from error
        if strays:
            raise self._stray(strays)
        return namespace

    def error(self, message: str) -> NoReturn:
        """What argparse finds wrong with no flag in particular."""
        raise UsageError(self.prog, message, f"see {self.prog} --help")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """What argparse prints is the help; it passes over a stdout that can't be written."""
        say(message, end="")

    def _refused(self, error: argparse.ArgumentError) -> UsageError:
        name = max((error.argument_name or self.prog).split("/"), key=len)
        mend = f"see {self.prog} --help"
        if error.message == "expected one argument":
            mend = f"a value that starts with a dash is written {name}=VALUE"
        return UsageError(name, error.message, mend)

    def _stray(self, strays: Sequence[str]) -> UsageError:
        flag = next((stray for stray in strays if stray.startswith("-") and stray != "-"), None)
        if flag is None:
            return UsageError(shown(strays[0]), "no flag takes this", f"see {self.prog} --help")
        name = flag.partition("=")[0]
        known = [long for long in self._option_string_actions if long.startswith("--")]
        return UsageError(name, "unknown option", nearest(name, known))


def add_key(
    group: argparse._ActionsContainer,
    *names: str,
    key: str,
    help: str,  # argparse's own word for it
    metavar: str | None = None,
) -> None:
    """Add a flag that sets a schema key.

    What it gives travels in the namespace as a `Setting`, for `configs.loader.read_layers`.

    Args:
        group: Where the help shows it.
        names: The flag's names; messages use the long one given, or the first.
        key: The dotted key.
        help: A line on it; the schema's default follows, if there is one.
        metavar: The placeholder of its value; the kind of value when None.
    """
    check = KEYS[key].check
    if default := _default_text(key):
        help = f"{help} (default: {default})"
    group.add_argument(
        *names,
        action=_KeyAction,
        dest=key,
        help=help.replace("%", "%%"),
        metavar=metavar or check.metavar,
        nargs=0 if check.kind == "flag" else None,
    )


def add_common(parser: Parser) -> None:
    """Add what both commands take: where settings come from, what is said, help and version."""
    settings = parser.group("settings")
    settings.add_argument(
        "--config", metavar="NAME|PATH", help="TOML file of the model: a shipped one, or your own"
    )
    settings.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="set one key, as in the TOML file; may be repeated",
    )
    settings.add_argument(
        "--show-config", action="store_true", help="print every value and its origin, and leave"
    )
    output = parser.group("output")
    output.add_argument("--json", action="store_true", help="one JSON object on stdout")
    loudness = output.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="no progress, no statistics")
    loudness.add_argument("--verbose", action="store_true", help="say more on stderr")
    output.add_argument("--debug", action="store_true", help="show tracebacks")
    output.add_argument("--version", action=_VersionAction, help="print the version and leave")
    output.add_argument("-h", "--help", action="help", help="print this and leave")


class _KeyAction(argparse.Action):
    """Keeps the checked value with its flag, as a `Setting` under the dotted key."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        check = KEYS[self.dest].check
        names = [option_string or "", *self.option_strings]
        origin = next(name for name in names if name.startswith("--"))
        try:
            value = True if check.kind == "flag" else check.from_text(str(values))
        except InvalidValue as error:
            refused = refusal(origin, (), error)
            raise UsageError(refused.where, refused.what, refused.mend) from error
        earlier = getattr(namespace, self.dest, None)
        if check.kind == "many" and isinstance(earlier, Setting):
            value = (*earlier.value, *value)  # type: ignore[misc]  # both are tuples of texts
        setattr(namespace, self.dest, Setting(value, origin))


class _VersionAction(argparse.Action):
    """Prints the version of the whole toolkit."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **kwargs)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        say(f"{parser.prog} (mlx-ferry) {__version__}")
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """The form of Python 3.13 in every version: a value is named once, behind all names."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        if action.nargs == 0:
            return names
        value = self._get_default_metavar_for_optional(action)
        return f"{names} {self._format_args(action, value)}"


def _formatter(prog: str) -> argparse.HelpFormatter:
    # argparse asks shutil for the width, whose import costs more than the help itself.
    try:
        width = int(os.environ.get("COLUMNS", "")) or os.get_terminal_size().columns
    except (ValueError, OSError):
        width = _WIDEST
    return _Formatter(prog, width=min(width, _WIDEST))


def _default_text(key: str) -> str:
    default = KEYS[key].default
    if default is None or default is False or default == ():
        return ""
    if key in _OF_MODE:
        of_mode = {name: getattr(mode, _OF_MODE[key])[0] for name, mode in MODES.items()}
        others = [f"{name} {value}" for name, value in of_mode.items() if value != default]
        return f"{default}; {', '.join(others)}"
    # 5 * 10**9 is easier to read, and to write, as 5GB.
    return re.sub(r"^(\d+)0{9}$", r"\1GB", str(default))
