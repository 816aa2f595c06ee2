"""Runs mlx-lm's model layer by layer on the inputs that transformers' layers had.

Every decoder layer takes the reference's hidden state in place of what the layers before
it made, so that its error is its own. A second row of the batch runs freely from the token
ids to the logits. A weight is read when the model asks for it and forgotten after the
layer. Owns that; where weights come from is for `values` to know, what an error means for
`tolerance`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from checkpoint.architecture.on_demand import intercept, watch
from configs.errors import ArchitectureError
from convert.proof.errors import distribution_shift, logit_error, relative_error, update_error
from convert.proof.progress import Tell
from convert.proof.reference import Reference
from convert.proof.values import Values, read_whole

EMBEDDINGS: Literal["embeddings"] = "embeddings"
HEAD: Literal["norm and head"] = "norm and head"
Part = int | Literal["embeddings", "norm and head"]
"""A decoder layer by its number, or what is before the first or after the last."""

_CHOOSING = ("Switch", "Indexer")
"""How mlx-lm's names begin for what picks experts, or the positions to look at."""


@dataclass(frozen=True)
class Run:
    """What came of one run, all errors relative to what transformers computes.

    Attributes:
        embeddings: Error of what goes into the first layer.
        layers: Error of each decoder layer's update of the hidden state.
        head: Error of the logits made of the reference's last hidden state.
        logits: Error of the logits of the free run.
        divergence: Kullback-Leibler divergence of the free run's distributions from the
            reference's, in nats a token.
        agreement: Share of tokens for which both have the same most probable next one.
    """

    embeddings: float
    layers: tuple[float, ...]
    head: float
    logits: float
    divergence: float
    agreement: float


class Bench:
    """A model of mlx-lm whose weights are read on demand and whose layers are forced.

    Args:
        model: The model, not quantized. It is changed for good.
        reference: What transformers computed.
        tell: Told of every layer.
    """

    def __init__(self, model: Any, reference: Reference, tell: Tell) -> None:
        layers = list(model.layers)
        if len(layers) != reference.layers:
            raise incomparable(f"mlx-lm has {len(layers)} layers, transformers {reference.layers}")
        self._model, self._reference, self._tell = model.eval(), reference, tell
        self._shapes = {
            name: tuple(array.shape)
            for name, array in cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
        }
        self._held: dict[str, mx.array] = {}
        self._values: Values | None = None
        self._phase = ""
        self._part: Part = EMBEDDINGS
        self._asked: dict[Part, set[str]] = {}
        self._embeddings = 0.0
        self._errors: dict[int, float] = {}
        self._choosing = {number for number, layer in enumerate(layers) if _chooses(layer)}
        watched = watch(model, self._shapes.keys(), self._fetch)
        # Parameters that lie in plain lists or dicts can't be watched; they are few and small.
        self._unwatched = [name for name in self._shapes if name not in watched]
        for number, layer in enumerate(layers):
            intercept(layer, lambda *given, number=number: self._run_layer(number, *given))

    def asked(self, part: Part) -> frozenset[str]:
        """The parameters that a part has read so far."""
        return frozenset(self._asked.get(part, ()))

    def run(self, values: Values, phase: str) -> Run:
        """Run the model with some weights.

        Raises:
            ArchitectureError: its layers can't be held against transformers'.
        """
        self._values, self._phase, self._part, self._errors = values, phase, EMBEDDINGS, {}
        resident = [(name, self._read(name)) for name in self._unwatched]
        self._model.update(tree_unflatten(resident))
        ids = self._reference.ids
        logits = self._model(mx.stack([ids, ids]))
        mx.eval(logits)
        self._held.clear()
        wanted = self._reference.logits()
        forced, free = (row[:, : wanted.shape[-1]].astype(mx.float32) for row in logits)
        if len(self._errors) != self._reference.layers:
            raise incomparable("mlx-lm does not run every layer once")
        divergence, agreement = distribution_shift(free, wanted)
        return Run(
            embeddings=self._embeddings,
            layers=tuple(self._errors[number] for number in range(self._reference.layers)),
            head=logit_error(forced, wanted),
            logits=logit_error(free, wanted),
            divergence=divergence,
            agreement=agreement,
        )

    def _fetch(self, name: str) -> mx.array:
        if name not in self._held:
            self._held[name] = self._read(name)
        return self._held[name]

    def _read(self, name: str) -> mx.array:
        if self._values is None:
            raise ArchitectureError(name, "was asked for outside of a run")
        self._asked.setdefault(self._part, set()).add(name)
        return read_whole(self._values, name, self._shapes[name])

    def _run_layer(
        self,
        number: int,
        call: Callable[..., Any],
        hidden: mx.array,
        rest: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        given, wanted = self._reference.layer(number)
        if hidden.shape[1:] != given.shape:
            what = f"layer {number} takes {list(hidden.shape[1:])} in mlx-lm"
            raise incomparable(f"{what}, and {list(given.shape)} in transformers")
        # What was computed so far holds on to weights that it no longer needs once it is there.
        arrays = [each for each in (*rest, *named.values()) if isinstance(each, mx.array)]
        mx.eval(hidden, *arrays)
        self._held.clear()
        if number == 0:
            self._embeddings = relative_error(hidden[0].astype(mx.float32), given)
        self._part = number
        made = call(_with_first(hidden, given), *rest, **named)
        output = made[0] if isinstance(made, tuple) else made
        mx.eval(output)
        self._held.clear()
        mx.clear_cache()
        self._part = HEAD
        self._tell(self._phase, f"layer {number}", number + 1, self._reference.layers)
        found, chooses = output[0].astype(mx.float32), number in self._choosing
        self._errors[number] = update_error(found, wanted, given, chooses=chooses)
        forced = _with_first(output, wanted)
        return (forced, *made[1:]) if isinstance(made, tuple) else forced


def incomparable(what: str) -> ArchitectureError:
    """An error for a model whose parts are not transformers' parts."""
    return ArchitectureError(
        "--prove", f"the layers can't be compared: {what}", "convert without --prove"
    )


def _chooses(layer: nn.Module) -> bool:
    return any(type(part).__name__.startswith(_CHOOSING) for part in layer.modules())


def _with_first(rows: mx.array, first: mx.array) -> mx.array:
    """A batch with its first row replaced."""
    return mx.concatenate([first[None].astype(rows.dtype), rows[1:]])
