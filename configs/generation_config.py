"""A model's generation_config.json: what it recommends, in the words of our schema.

Owns which of transformers' keys have an equal here, and which would change an answer and have none.
Reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from configs.checks import InvalidValue
from configs.errors import ModelConfigError
from configs.keys import KEYS
from configs.settings import Layer, Setting

_EQUAL: Mapping[str, str] = MappingProxyType(
    {
        "temperature": "generate.temperature",
        "top_p": "generate.top_p",
        "top_k": "generate.top_k",
        "min_p": "generate.min_p",
        "repetition_penalty": "generate.repetition_penalty",
        "max_new_tokens": "generate.max_tokens",
        "min_new_tokens": "generate.min_tokens",
        "stop_strings": "generate.stop",
    }
)

# Keys that change an answer and have no equal here, and the values at which they change nothing.
# What only beam search or an assistant model reads is not among them, nor what sizes a cache, nor
# max_length: transformers itself lets max_new_tokens go before it, and old files all say 20.
_UNHONOURED: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "num_beams": (1,),
        "typical_p": (1.0,),
        "top_h": (),
        "epsilon_cutoff": (0.0,),
        "eta_cutoff": (0.0,),
        "encoder_repetition_penalty": (1.0,),
        "no_repeat_ngram_size": (0,),
        "exponential_decay_length_penalty": (),
        "min_length": (0,),
        "max_time": (),
        "penalty_alpha": (0.0,),
        "dola_layers": (),
        "guidance_scale": (1.0,),
        "bad_words_ids": ([],),
        "force_words_ids": ([],),
        "constraints": ([],),
        "sequence_bias": ([], {}),
        "suppress_tokens": ([],),
        "begin_suppress_tokens": ([],),
        "forced_bos_token_id": (),
        "forced_eos_token_id": (),
        "token_healing": (False,),
        "watermarking_config": (),
    }
)


def recommended(mapping: Mapping[str, object], path: Path) -> Layer:
    """What the file says that has an equal here; null says "not set".

    Args:
        mapping: The parsed file.
        path: It, for messages.

    Raises:
        ModelConfigError: A value that the key can't take.
    """
    layer = {}
    for name, key in _EQUAL.items():
        value = mapping.get(name)
        if value is None:
            continue
        try:
            layer[key] = Setting(KEYS[key].check(value), path.name)
        except InvalidValue as error:
            raise ModelConfigError(path, f"{name}: {error.what}", error.mend) from error
    sample = mapping.get("do_sample")
    if sample is not None and not isinstance(sample, bool):
        raise ModelConfigError(path, "do_sample is neither true nor false", "correct the file")
    if sample is False:
        layer["generate.temperature"] = Setting(0.0, path.name)
    if "generate.repetition_penalty" in layer:
        # transformers' penalty looks back on all there is.
        layer["generate.repetition_context"] = Setting(0, path.name)
    return layer


def unhonoured(mapping: Mapping[str, object]) -> tuple[str, ...]:
    """The keys of the file that would change an answer in transformers and do not here."""
    return tuple(
        name
        for name, neutral in _UNHONOURED.items()
        if (value := mapping.get(name)) is not None and value not in neutral
    )
