"""A score as JSON fields and as a table.

Owns their names and layout. Measures nothing.
"""

from __future__ import annotations

from typing import Any

from inference.detokenize import Detokenizer
from inference.score import Score
from inference.statistics import Run
from inference.tokenizer import Tokenizer


def texts(score: Score, tokenizer: Tokenizer | None) -> list[str] | None:
    """The text that each token adds; joined, they are the whole text.

    A character of several tokens is the text of its last.
    """
    if tokenizer is None:
        return None
    detokenizer = Detokenizer(lambda ids: tokenizer.decode(ids, skip_special=False))
    pieces = [detokenizer.push(token.id) for token in score.tokens]
    pieces[-1] += detokenizer.flush()
    return pieces


def fields(score: Score, tokenizer: Tokenizer | None, run: Run) -> dict[str, Any]:
    """The JSON object; texts and bits per byte are null without a tokenizer."""
    pieces = texts(score, tokenizer)
    return {
        "tokens": [
            {
                "id": token.id,
                "text": None if pieces is None else pieces[index],
                "logprob": token.logprob,
                "bits": token.bits,
                "rank": token.rank,
            }
            for index, token in enumerate(score.tokens)
        ],
        "total_bits": score.total_bits,
        "perplexity": score.perplexity,
        "bits_per_byte": bits_per_byte(score, pieces),
        "window": score.window,
        "stride": score.stride,
        **run.fields(),
    }


def table(score: Score, tokenizer: Tokenizer | None) -> str:
    """A line for each token, and the totals."""
    pieces = texts(score, tokenizer)
    lines = [f"{'token':>8}  {'bits':>7}  {'rank':>7}  text"]
    for index, token in enumerate(score.tokens):
        bits = "" if token.bits is None else f"{token.bits:.3f}"
        rank = "" if token.rank is None else str(token.rank)
        text = "" if pieces is None else repr(pieces[index])
        lines.append(f"{token.id:>8}  {bits:>7}  {rank:>7}  {text}".rstrip())
    return "\n".join([*lines, totals(score, pieces)])


def totals(score: Score, pieces: list[str] | None) -> str:
    """The figures of the whole text, a line."""
    parts = [f"{len(score.tokens)} tokens", f"{score.total_bits:.2f} bits"]
    if score.perplexity is not None:
        parts.append(f"perplexity {score.perplexity:.3f}")
    per_byte = bits_per_byte(score, pieces)
    if per_byte is not None:
        parts.append(f"{per_byte:.4f} bits per byte")
    if score.window is not None:
        parts.append(f"in windows of {score.window} tokens, {score.stride} apart")
    return ", ".join(parts) + "\n"


def bits_per_byte(score: Score, pieces: list[str] | None) -> float | None:
    """Bits over the UTF-8 bytes of the tokens that have any; the first has none."""
    if pieces is None:
        return None
    size = len("".join(pieces[1:]).encode("utf-8"))
    return score.total_bits / size if size else None
