"""Which option works in which mode of `infer`, and the refusal of the rest.

One table: the command refuses by it, a test walks it, and the READMEs show it. An option that
is not in a mode's column is refused there by name, never passed over. Knows nothing of what the
options do.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING

from configs.errors import UsageError
from configs.keys import KEYS
from inference.flags import GENERATE_FLAGS

if TYPE_CHECKING:
    from configs.resolve import Resolved


@dataclass(frozen=True)
class Mode:
    """One way to run the command.

    Attributes:
        head: The flags that ask for it, as the table's head.
        words: What messages call it, after "does not go with".
        answers: Whether it writes answers, so that [generate] in a file is meant for it.
    """

    head: str
    words: str
    answers: bool = True


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "text": Mode("`--prompt`", "an answer in plain text"),
        "stream": Mode("`--stream`", "--stream as text"),
        "json": Mode("`--json`", "--json"),
        "stream json": Mode("`--stream` `--json`", "--stream --json"),
        "chat": Mode("`--chat`", "--chat"),
        "batch": Mode("`--batch`", "--batch"),
        "score": Mode("`--score`", "--score", answers=False),
    }
)

EVERYWHERE = frozenset(MODES)
ANSWERS = frozenset(name for name, mode in MODES.items() if mode.answers)
_ONE = ANSWERS - {"batch", "chat"}


@dataclass(frozen=True)
class Option:
    """A flag and the modes that honour it.

    Attributes:
        name: The flag, its long name.
        modes: Names in `MODES`.
        key: The dotted key that it sets, if it sets one.
        mend: What to do where it is refused.
    """

    name: str
    modes: frozenset[str]
    key: str | None = None
    mend: str = "leave it out"

    def given(self, args: Namespace, settings: Resolved, mode: Mode) -> str | None:
        """Where it was given, in words for the user; None if it was not.

        A key of a file describes the model for every mode, so one that this mode never reads is
        no fault; one that it reads and can't honour is.
        """
        if self.key is None:
            value = getattr(args, self.name.removeprefix("--").replace("-", "_"))
            return None if value in (None, False) else self.name
        origin = settings.origin(self.key)
        if origin.startswith("--"):
            return origin
        table, name = self.key.split(".")
        if table != "generate" or not mode.answers:
            return None
        return origin if getattr(settings.generate, name) != KEYS[self.key].default else None


# Those of [generate] that are not for every answer.
_NARROWER = {
    "--logprobs": (frozenset({"json", "stream json", "batch"}), "add --json"),
    "--n": (ANSWERS - {"stream", "chat"}, "add --json, or leave --stream out"),
}

OPTIONS: tuple[Option, ...] = (
    Option("--model", EVERYWHERE),
    Option("--adapter", EVERYWHERE, "model.adapter"),
    Option("--load-bits", EVERYWHERE, "memory.load_bits"),
    Option("--context", EVERYWHERE, "memory.context"),
    Option("--kv-bits", EVERYWHERE, "memory.kv_bits"),
    Option("--kv-start", EVERYWHERE, "memory.kv_start"),
    Option("--memory-limit", EVERYWHERE, "memory.limit"),
    Option("--device", EVERYWHERE),
    Option("--dtype", EVERYWHERE),
    Option("--config", EVERYWHERE),
    Option("--set", EVERYWHERE),
    Option("--quiet", EVERYWHERE),
    Option("--verbose", EVERYWHERE),
    Option("--debug", EVERYWHERE),
    Option("--prompt", _ONE | {"score"}),
    Option("--prompt-file", _ONE),
    Option("--system", ANSWERS, "generate.system"),
    Option("--draft-model", ANSWERS, "model.draft"),
    Option("--raw", ANSWERS - {"chat"}),
    Option("--prompt-cache", ANSWERS - {"chat"}, mend="a chat keeps its own with --save-cache"),
    *(
        Option(name, ANSWERS, flag.key)
        for name, flag in GENERATE_FLAGS.items()
        if name not in _NARROWER
    ),
    *(
        Option(name, modes, GENERATE_FLAGS[name].key, mend)
        for name, (modes, mend) in _NARROWER.items()
    ),
    *(
        Option(name, frozenset({"chat"}), mend="add --chat")
        for name in ("--session", "--save-cache")
    ),
    *(Option(name, frozenset({"batch"}), mend="add --batch") for name in ("--output", "--force")),
    Option("--batch-size", frozenset({"batch"}), "memory.batch_size", "add --batch"),
    *(
        Option(name, frozenset({"score"}), mend="add --score")
        for name in ("--text-file", "--ids-file", "--window", "--stride", "--html")
    ),
    # What makes the modes themselves.
    Option("--stream", frozenset({"stream", "stream json"})),
    Option("--json", frozenset({"json", "stream json", "chat", "score"})),
    Option("--chat", frozenset({"chat"})),
    Option("--batch", frozenset({"batch"})),
    Option("--score", frozenset({"score"})),
)

_MAKE_MODES = ("--stream", "--json", "--chat", "--batch", "--score")


def mode_of(args: Namespace) -> str:
    """The mode that the flags ask for, a name in `MODES`."""
    if args.score:
        return "score"
    if args.batch is not None:
        return "batch"
    if args.chat:
        return "chat"
    words = [name for name in ("stream", "json") if getattr(args, name)]
    return " ".join(words) or "text"


def check_options(args: Namespace, settings: Resolved) -> None:
    """Refuse what the mode can't honour.

    Raises:
        UsageError: With the flag, or the place in a file, and what it does not go with.
    """
    name = mode_of(args)
    mode = MODES[name]
    for option in OPTIONS:
        if name in option.modes:
            continue
        origin = option.given(args, settings, mode)
        if origin is not None:
            where = origin if origin.startswith(option.name) else f"{origin} ({option.name})"
            # A flag that asks for another mode helps nobody who has asked for one of these.
            adds = name in ("chat", "batch", "score") and option.mend.startswith("add ")
            mend = "leave it out" if adds else option.mend
            raise UsageError(where, f"does not go with {mode.words}", mend)


def markdown(option: str = "option") -> str:
    """The table as the READMEs show it; options of the same modes share a row.

    Args:
        option: The head of the first column, in the reader's language.
    """
    shown = [each for each in OPTIONS if each.name not in _MAKE_MODES]
    lines = [
        f"| {' | '.join([option, *(mode.head for mode in MODES.values())])} |",
        f"|---{'|:-:' * len(MODES)}|",
    ]
    for modes, group in groupby(shown, key=lambda each: each.modes):
        names = ", ".join(f"`{_shown_name(each.name)}`" for each in group)
        cells = ["✓" if name in modes else "–" for name in MODES]
        lines.append(f"| {' | '.join([names, *cells])} |")
    return "\n".join(lines)


def _shown_name(name: str) -> str:
    return "-n" if name == "--n" else name
