"""What one TOML file says of one model: its tables, and what their keys mean, with units.

Every key here is honoured by `convert` or `infer`; there are no others. Ranges and defaults stand
in `configs.keys`. The tables know nothing of files, flags or precedence: `configs.resolve` fills
them, and says where each value came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from configs.quantization import ConvertTable, LayerChoice, LayerRule
from configs.table import DEFAULTS, Table, checks_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "TABLES",
    "ConvertTable",
    "GenerateTable",
    "LayerChoice",
    "LayerRule",
    "MemoryTable",
    "ModelTable",
    "TokenizerTable",
]


@dataclass(frozen=True)
class ModelTable(Table, checks=checks_of("model")):
    """`[model]`: which model this is.

    Args:
        name: What to call it, and the first part of the default folder's name; the last part of
            `source` when not set.
        source: The Hugging Face checkpoint: a hub id, or a local folder. In a TOML file a local
            folder starts with `./`, `../`, `/` or `~`.
        revision: A branch, tag or commit of a hub id; the hub's main branch when not set.
        path: The MLX folder: where `convert` writes and `infer` reads.
        adapter: The folder of an adapter that `infer` adds to the weights, as `mlx_lm.lora` or PEFT
            writes it.
        draft: An MLX folder of a smaller model with the same tokens, which guesses what comes next.
        step: Of training, where a folder of nanochat's own holds several; the highest when not
            set.
    """

    name: str | None = DEFAULTS["model.name"]
    source: str | None = DEFAULTS["model.source"]
    revision: str | None = DEFAULTS["model.revision"]
    path: Path | None = DEFAULTS["model.path"]
    adapter: Path | None = DEFAULTS["model.adapter"]
    draft: Path | None = DEFAULTS["model.draft"]
    step: int | None = DEFAULTS["model.step"]


@dataclass(frozen=True)
class TokenizerTable(Table, checks=checks_of("tokenizer")):
    """`[tokenizer]`: what the model's own tokenizer files lack or have wrong.

    Args:
        eos_tokens: Tokens, as text, that end an answer, besides the model's own.
        chat_template: A jinja file to use in place of the model's own template.
        pattern: The regular expression, as tiktoken takes it, by which the tokenizer of a
            `.tiktoken` file cuts text; needed for one of no known name.
        trust_remote_code: Let `convert` run the Python code of the model's own folder where its
            config or tokenizer can't be had without.
    """

    eos_tokens: tuple[str, ...] = DEFAULTS["tokenizer.eos_tokens"]
    chat_template: Path | None = DEFAULTS["tokenizer.chat_template"]
    pattern: str | None = DEFAULTS["tokenizer.pattern"]
    trust_remote_code: bool = DEFAULTS["tokenizer.trust_remote_code"]


@dataclass(frozen=True)
class GenerateTable(Table, checks=checks_of("generate")):
    """`[generate]`: how answers are drawn.

    Args:
        temperature: 0 takes the most probable token each time.
        top_p: Draw from the most probable tokens that together have this probability; 1 is off.
        top_k: Draw from this many most probable tokens; 0 is off.
        min_p: Leave out tokens below this share of the most probable one's probability; 0 is off.
        xtc_probability: How often, of 1, the most probable tokens are left out for a less usual
            one; 0 is off.
        xtc_threshold: Tokens of at least this probability are then left out, but for the least
            probable of them.
        repetition_penalty: Above 1 makes tokens that were just used less probable; 1 is off.
        repetition_context: How many tokens back, into the prompt too, it looks; 0 for all.
        presence_penalty: Taken from the logits of tokens that the answer has; 0 is off.
        presence_context: How many tokens of the answer it looks back; 0 for all.
        frequency_penalty: The same, once for each time the answer has the token; 0 is off.
        frequency_context: How many tokens of the answer it looks back; 0 for all.
        logit_bias: Added to the logits of these token ids; pairs of an id and its bias.
        max_tokens: Longest answer, in tokens.
        min_tokens: Nothing ends the answer before it has this many tokens.
        stop: The answer ends before any of these texts.
        stop_token: Tokens that end the answer, besides the model's own; by text, or by id.
        ignore_eos: Whether the model's own end-of-sequence tokens end nothing.
        logprobs: Give the log-probability of each token, and of this many of the most probable
            ones at its place.
        n: How many answers to give.
        prompt_lookup: Guess the tokens to come from what was said before, and check them at once;
            the answer stays the same.
        seed: Of the random numbers; a new one each time when not set.
        thinking: What becomes of the model's thinking sections; `show` when not set.
        thinking_budget: Most tokens of a thinking section, which is then closed.
        tools: What the model may call, as JSON in OpenAI's form.
        json_schema: The answer is JSON that this schema allows.
        regex: The answer, all of it, matches this regular expression.
        choice: The answer is one of these texts.
        calculator: Work out what a nanochat model writes between `<|python_start|>` and
            `<|python_end|>`, and let it read the result.
        system: The system message.
    """

    temperature: float = DEFAULTS["generate.temperature"]
    top_p: float = DEFAULTS["generate.top_p"]
    top_k: int = DEFAULTS["generate.top_k"]
    min_p: float = DEFAULTS["generate.min_p"]
    xtc_probability: float = DEFAULTS["generate.xtc_probability"]
    xtc_threshold: float = DEFAULTS["generate.xtc_threshold"]
    repetition_penalty: float = DEFAULTS["generate.repetition_penalty"]
    repetition_context: int = DEFAULTS["generate.repetition_context"]
    presence_penalty: float = DEFAULTS["generate.presence_penalty"]
    presence_context: int = DEFAULTS["generate.presence_context"]
    frequency_penalty: float = DEFAULTS["generate.frequency_penalty"]
    frequency_context: int = DEFAULTS["generate.frequency_context"]
    logit_bias: tuple[tuple[int, float], ...] = DEFAULTS["generate.logit_bias"]
    max_tokens: int = DEFAULTS["generate.max_tokens"]
    min_tokens: int = DEFAULTS["generate.min_tokens"]
    stop: tuple[str, ...] = DEFAULTS["generate.stop"]
    stop_token: tuple[int | str, ...] = DEFAULTS["generate.stop_token"]
    ignore_eos: bool = DEFAULTS["generate.ignore_eos"]
    logprobs: int | None = DEFAULTS["generate.logprobs"]
    n: int = DEFAULTS["generate.n"]
    prompt_lookup: bool = DEFAULTS["generate.prompt_lookup"]
    seed: int | None = DEFAULTS["generate.seed"]
    thinking: str | None = DEFAULTS["generate.thinking"]
    thinking_budget: int | None = DEFAULTS["generate.thinking_budget"]
    tools: str | None = DEFAULTS["generate.tools"]
    json_schema: str | None = DEFAULTS["generate.json_schema"]
    regex: str | None = DEFAULTS["generate.regex"]
    choice: tuple[str, ...] = DEFAULTS["generate.choice"]
    calculator: bool = DEFAULTS["generate.calculator"]
    system: str | None = DEFAULTS["generate.system"]


@dataclass(frozen=True)
class MemoryTable(Table, checks=checks_of("memory")):
    """`[memory]`: what a run may take.

    Args:
        context: Most tokens of prompt and answer together; the model's own limit when not set.
        load_bits: Quantize weights that are not quantized to this many bits when they are read.
        kv_bits: Keep the KV cache at this many bits; in the compute dtype when not set.
        kv_start: They are brought to it once the cache holds so many tokens.
        batch_size: Most answers of a batch under way at once; fewer where memory is short.
        limit: Most memory for MLX, in bytes; text such as "12GB" is read. MLX's own when not set.
    """

    context: int | None = DEFAULTS["memory.context"]
    load_bits: int | None = DEFAULTS["memory.load_bits"]
    kv_bits: int | None = DEFAULTS["memory.kv_bits"]
    kv_start: int = DEFAULTS["memory.kv_start"]
    batch_size: int = DEFAULTS["memory.batch_size"]
    limit: int | None = DEFAULTS["memory.limit"]


TABLES: Mapping[str, type[Table]] = MappingProxyType(
    {
        "model": ModelTable,
        "convert": ConvertTable,
        "tokenizer": TokenizerTable,
        "generate": GenerateTable,
        "memory": MemoryTable,
    }
)
