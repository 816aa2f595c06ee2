"""Which nanochat made a checkpoint, and what that one had built in.

nanochat's files hold weights and sizes; how the logits are capped or how far a layer sees
stands in its source alone, which changed. The tensors' names and shapes tell its state
apart. Owns that judgement and the constants of each state. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from checkpoint.folder import shown
from configs.errors import ArchitectureError

Shapes = Mapping[str, tuple[int, ...]]

COMPILED = "_orig_mod."
"""What `torch.compile` puts before the names of a model saved through it."""

_SHORT_LIVED = re.compile(r"(?:^|\.)(bigram_embed|bigram_lambdas|v0_lambdas|value_embed)(?:\.|$)")
_VALUE_TABLE = re.compile(r"value_embeds\.(\d+)\.weight")
_VALUE_GATE = re.compile(r"transformer\.h\.(\d+)\.attn\.ve_gate\.weight")
_LAYER = re.compile(r"transformer\.h\.(\d+)\.")
_LAMBDAS = ("resid_lambdas", "x0_lambdas")
_SMEARING = ("smear_gate.weight", "smear_lambda", "backout_lambda")
SMEAR_WIDTH = 24


@dataclass(frozen=True)
class Era:
    """A state of nanochat's model.

    Attributes:
        name: From when on it was so.
        theta: Base of the rotary angles.
        softcap: Of the logits.
        qk_scale: Factor of queries and of keys after their norm.
        gate_width: How much of a layer's input the gate of value embeddings sees; 0 without.
        gate_scale: Factor before that gate's sigmoid.
        short_divisor: Part of the context that a short window spans.
        short_multiple: What that is rounded up to; 1 for rounding down to a whole number.
        lambdas: Whether layers scale the residual stream and add the embedding.
        smear: Whether embeddings are smeared into the next, and the middle of the residual
            stream taken off its end.
        doubt: What its files can't tell; empty if they tell all.
    """

    name: str
    theta: float = 1e4
    softcap: float = 15.0
    qk_scale: float = 1.0
    gate_width: int = 0
    gate_scale: float = 2.0
    short_divisor: int = 2
    short_multiple: int = 1
    lambdas: bool = True
    smear: bool = False
    doubt: str = ""

    def short_window(self, context: int) -> int:
        """How many tokens back a layer with a short window sees."""
        if self.short_multiple == 1:
            return context // self.short_divisor
        parts = -(-context // self.short_divisor)
        return -(-parts // self.short_multiple) * self.short_multiple


_OCTOBER = Era("2025-10", lambdas=False)
_JANUARY = Era("2026-01-11")
_VALUES = Era(
    "2026-01-16",
    gate_width=32,
    doubt=(
        "nanochat from 2026-03-02 to 2026-03-09 capped logits at 20, before at 15, and the file "
        "does not tell: 15 is assumed; if it is from those days, add --set convert.softcap=20"
    ),
)
_MARCH = Era("2026-03-09", 1e5, 15.0, 1.15, 12, 3.0, 3, 128)
_SMEARED = Era("2026-03-14", 1e5, 15.0, 1.2, 12, 3.0, 4, 128, smear=True)


def recognise(shapes: Shapes) -> Era:
    """The state of nanochat that tensors of these names and shapes are of.

    Raises:
        ArchitectureError: A variant that was never released, or none that is known.
    """
    _refuse_variants(shapes)
    layers = {int(found[1]) for name in shapes if (found := _LAYER.match(name))}
    tables = {int(found[1]) for name in shapes if (found := _VALUE_TABLE.fullmatch(name))}
    alternate = {layer for layer in layers if layer % 2 == (len(layers) - 1) % 2}
    if tables and tables != alternate:
        what = "value_embeds are not those of every other layer: a short-lived variant of nanochat"
        raise _refused(what)
    gates = {
        int(found[1]): shape[-1]
        for name, shape in shapes.items()
        if shape and (found := _VALUE_GATE.fullmatch(name))
    }
    if gates.keys() != tables:
        raise _refused("the layers with value_embeds are not those with a ve_gate")
    lambdas = _all_or_none(shapes, _LAMBDAS)
    smear = _all_or_none(shapes, _SMEARING)
    match lambdas, sorted(set(gates.values())), smear:
        case False, [], False:
            return _OCTOBER
        case True, [], False:
            return _JANUARY
        case True, [32], False:
            return _VALUES
        case True, [12], False:
            return _MARCH
        case True, [12], True:
            return _SMEARED
    raise _refused(
        "its tensors are those of no known state of nanochat "
        f"(residual lambdas: {lambdas}, gate widths: {sorted(set(gates.values()))}, "
        f"smearing: {smear})"
    )


def check_names(shapes: Shapes, era: Era) -> None:
    """Refuse tensors that the state of nanochat does not have.

    Raises:
        ArchitectureError: With their names.
    """
    known = {"transformer.wte.weight", "lm_head.weight"}
    known.update(_LAMBDAS if era.lambdas else (), _SMEARING if era.smear else ())
    matrices = r"(attn\.c_(q|k|v|proj)|mlp\.c_(fc|proj))\.weight"
    layer = re.compile(rf"transformer\.h\.\d+\.{matrices}")
    unknown = [
        name
        for name in sorted(shapes)
        if name not in known
        and not layer.fullmatch(name)
        and not _VALUE_TABLE.fullmatch(name)
        and not _VALUE_GATE.fullmatch(name)
    ]
    if unknown:
        raise _refused(f"nanochat of {era.name} has no {shown(unknown)}")


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without what `torch.compile` put before it.

    Raises:
        ArchitectureError: Two are the same then.
    """
    plain: dict[str, str] = {}
    for name in names:
        other = plain.setdefault(name.removeprefix(COMPILED), name)
        if other != name:
            raise _refused(f"holds {shown([name])} with and without {COMPILED}")
    return {name: short for short, name in plain.items()}


def _refuse_variants(shapes: Shapes) -> None:
    for name in sorted(shapes):
        found = _SHORT_LIVED.search(name)
        if found:
            what = f"{found[1]} is of a short-lived variant of nanochat, which can't be run"
            raise _refused(what)


def _all_or_none(shapes: Shapes, names: tuple[str, ...]) -> bool:
    found = [name for name in names if name in shapes]
    if found and len(found) < len(names):
        lacking = [name for name in names if name not in shapes]
        raise _refused(f"has {', '.join(found)} and lacks {', '.join(lacking)}")
    return bool(found)


def _refused(what: str) -> ArchitectureError:
    mend = "convert it with the nanochat that made it, or use another checkpoint"
    return ArchitectureError("nanochat checkpoint", what, mend)
