"""The command `convert`, as the console and `python -m convert` start it.

Owns only that Ctrl-C is no traceback while the command itself is still being imported.
"""

from __future__ import annotations


def main() -> int:
    """Run the command; give its exit code."""
    try:
        from convert.cli import main as command

        return command()
    except KeyboardInterrupt:  # before the command could see to it
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
