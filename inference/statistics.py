"""What a run took: the lines on stderr and the fields in JSON.

Owns their wording and names. Measures nothing but memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from configs.errors import FerryError
from inference.events import Finished


@dataclass(frozen=True)
class Run:
    """What all requests of one run share.

    Attributes:
        model: As the user named it.
        device: "cpu", "metal" or "cuda".
        dtype: The float type that the model computes in.
        load_seconds: What loading took.
        weight_bytes: Of the model's files.
        adapter: The folder of what was added to its weights, if anything.
    """

    model: str
    device: str
    dtype: str
    load_seconds: float
    weight_bytes: int
    adapter: str | None = None

    @property
    def load_gb_per_second(self) -> float | None:
        """Billions of bytes of the model's files a second; None where the clock saw no time."""
        return self.weight_bytes / 1e9 / self.load_seconds if self.load_seconds > 0 else None

    def fields(self) -> dict[str, Any]:
        """Its part of a JSON object, without the timings of answers."""
        load = {
            "seconds": _rounded(self.load_seconds),
            "bytes": self.weight_bytes,
            "gb_per_second": _rounded(self.load_gb_per_second),
        }
        added = {} if self.adapter is None else {"adapter": self.adapter}
        about = {"device": self.device, "dtype": self.dtype, "model": self.model}
        return {**about, **added, "load": load}

    def describe(self) -> str:
        """Its part of the statistics."""
        speed = self.load_gb_per_second
        rate = "" if speed is None else f" ({speed:,.2f} GB/s)"
        size = f"{_size(self.weight_bytes)} in {self.load_seconds:.2f} s{rate}"
        return f"{self.device}, {self.dtype}; loaded {size}"


def finished_fields(event: Finished, run: Run) -> dict[str, Any]:
    """A finished answer as JSON fields, but for its text, and what it shares with others."""
    return {**answer_fields(event, run), **run.fields()}


def answer_fields(event: Finished, run: Run) -> dict[str, Any]:
    """A finished answer as JSON fields, but for its text."""
    usage, timings = event.usage, event.timings
    fields: dict[str, Any] = {
        "finish_reason": event.reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        },
        "timings": {
            "load_seconds": _rounded(run.load_seconds),
            "first_token_seconds": _rounded(timings.first_token_seconds),
            "prefill_tokens_per_second": _rounded(timings.prefill_tokens_per_second),
            "decode_tokens_per_second": _rounded(timings.decode_tokens_per_second),
            "peak_memory_bytes": mx.get_peak_memory(),
        },
    }
    if usage.drafted_tokens is not None:
        fields["usage"]["drafted_tokens"] = usage.drafted_tokens
        fields["usage"]["accepted_tokens"] = usage.accepted_tokens
        fields["timings"]["tokens_per_pass"] = timings.tokens_per_pass
    if event.error is not None:
        fields["error"] = error_fields(event.error)
    return fields


def _rounded(measured: float | None) -> float | None:
    """No finer than it was measured."""
    return None if measured is None else round(measured, 6)


def error_fields(error: FerryError) -> dict[str, str]:
    """An error as JSON fields."""
    return {"message": str(error), "type": type(error).__name__}


def describe(event: Finished, run: Run, seed: int | None) -> str:
    """The statistics line of one answer."""
    usage, timings = event.usage, event.timings
    parts = [
        run.describe(),
        f"prompt {usage.prompt_tokens} tokens{_rate(timings.prefill_tokens_per_second)}",
        f"answer {usage.completion_tokens} tokens{_rate(timings.decode_tokens_per_second)}",
    ]
    if (guesses := guessed([event])) is not None:
        parts.append(guesses)
    if timings.first_token_seconds is not None:
        parts.append(f"first token after {timings.first_token_seconds:.2f} s")
    parts.append(f"peak memory {mx.get_peak_memory() / 1e6:,.0f} MB")
    if seed is not None:
        parts.append(f"seed {seed}")
    return "; ".join(parts)


def describe_several(events: Sequence[Finished], run: Run, seed: int | None) -> str:
    """The statistics line of several answers to one prompt; `seed` is the first one's."""
    tokens = sum(event.usage.completion_tokens for event in events)
    parts = [
        run.describe(),
        f"prompt {events[0].usage.prompt_tokens} tokens",
        f"{len(events)} answers of {tokens} tokens",
        f"peak memory {mx.get_peak_memory() / 1e6:,.0f} MB",
    ]
    if (guesses := guessed(events)) is not None:
        parts.append(guesses)
    if seed is not None:
        parts.append(f"seed {seed} and others from it")
    return "; ".join(parts)


def guessed(events: Sequence[Finished]) -> str | None:
    """What became of guesses, in words; None where none were made."""
    drafted = sum(event.usage.drafted_tokens or 0 for event in events)
    accepted = sum(event.usage.accepted_tokens or 0 for event in events)
    if all(event.usage.drafted_tokens is None for event in events):
        return None
    rates = [e.timings.tokens_per_pass for e in events if e.timings.tokens_per_pass is not None]
    mean = f", {sum(rates) / len(rates):.2f} tokens a pass" if rates else ""
    return f"{accepted} of {drafted} guesses right{mean}"


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _rate(per_second: float | None) -> str:
    return "" if per_second is None else f" at {per_second:,.1f}/s"
