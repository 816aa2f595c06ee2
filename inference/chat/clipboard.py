"""A text into the clipboard: by the system's own program, else through the terminal.

Knows nothing of where the text comes from.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess

from configs.errors import UsageError

_PROGRAMS: tuple[tuple[str | None, tuple[str, ...]], ...] = (
    (None, ("pbcopy",)),
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
)
_SECONDS = 5
_LONGEST = 74_994  # bytes in base64 that terminals take


def by_program(text: str) -> str | None:
    """Give the text to the first program that is here; its name, None without one.

    Raises:
        UsageError: It fails.
    """
    for variable, command in _PROGRAMS:
        found = shutil.which(command[0])
        if found is None or (variable is not None and not os.environ.get(variable)):
            continue
        try:
            # Its output goes nowhere: xclip lives on in the background, and would hold a pipe.
            subprocess.run(
                [found, *command[1:]],
                input=text.encode("utf-8"),
                check=True,
                timeout=_SECONDS,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise UsageError("/copy", f"{command[0]} failed ({error})") from error
        return command[0]
    return None


def for_terminal(text: str) -> str:
    """The escape sequence (OSC 52) that asks a terminal to take the text.

    Raises:
        UsageError: It is longer than terminals take.
    """
    encoded = base64.b64encode(text.encode("utf-8")).decode("ascii")
    if len(encoded) > _LONGEST:
        raise UsageError("/copy", "the answer is too long for the terminal", "use /save")
    return f"\x1b]52;c;{encoded}\x07"
