"""What goes with targets and recipes on the command line.

Knows nothing of values; those are the tables' to check.
"""

from __future__ import annotations

from configs.errors import UsageError
from configs.resolve import Resolved


def check_mixture(resolved: Resolved, *, consumes: bool) -> None:
    """Refuse flags that mean nothing beside each other.

    Args:
        resolved: The options in force.
        consumes: Whether the source is fetched shard by shard.

    Raises:
        UsageError: naming the flag.
    """
    table = resolved.convert
    context = resolved.origin("memory.context")
    if context == "--context" and not (table.quantize and table.fit is not None):
        raise UsageError(context, "means nothing without --fit", "leave it out")
    if consumes and table.quantize and table.is_targeted:
        raise UsageError(
            "--consume-source",
            "can't measure weights that are not there yet, as a target asks for",
            "leave it out, or choose a --recipe",
        )
