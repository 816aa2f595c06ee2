"""The flags of `infer`.

Owns their names, groups and help. What they go with is `inference.options`' to say, what
values they take `configs.keys`'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from configs.arguments import Parser, add_common, add_key


class KeyFlag(NamedTuple):
    """A flag that sets a key: the key, a line of help, and a shorter name."""

    key: str
    help: str
    short: str | None = None


GENERATE_FLAGS: Mapping[str, KeyFlag] = MappingProxyType(
    {
        "--temperature": KeyFlag(
            "generate.temperature", "0 takes the most probable token each time"
        ),
        "--top-p": KeyFlag(
            "generate.top_p", "draw from the most probable tokens that together have this"
        ),
        "--top-k": KeyFlag("generate.top_k", "draw from this many most probable tokens; 0: all"),
        "--min-p": KeyFlag("generate.min_p", "leave out tokens below this share of the best one's"),
        "--xtc-probability": KeyFlag(
            "generate.xtc_probability", "how often to leave out the most probable tokens"
        ),
        "--xtc-threshold": KeyFlag(
            "generate.xtc_threshold", "those of this probability, but for the last of them"
        ),
        "--repetition-penalty": KeyFlag(
            "generate.repetition_penalty", "above 1: avoid what was just said"
        ),
        "--repetition-context": KeyFlag(
            "generate.repetition_context", "tokens of prompt and answer it looks back on; 0: all"
        ),
        "--presence-penalty": KeyFlag(
            "generate.presence_penalty", "above 0: avoid tokens that the answer has"
        ),
        "--presence-context": KeyFlag(
            "generate.presence_context", "tokens of the answer it looks back on; 0: all"
        ),
        "--frequency-penalty": KeyFlag(
            "generate.frequency_penalty", "the same, for each time the answer has it"
        ),
        "--frequency-context": KeyFlag(
            "generate.frequency_context", "tokens of the answer it looks back on; 0: all"
        ),
        "--logit-bias": KeyFlag(
            "generate.logit_bias", "make a token more or less probable; may be repeated"
        ),
        "--max-tokens": KeyFlag("generate.max_tokens", "longest answer, in tokens"),
        "--min-tokens": KeyFlag("generate.min_tokens", "nothing ends the answer before so many"),
        "--stop": KeyFlag("generate.stop", "end the answer before this text; may be repeated"),
        "--stop-token": KeyFlag(
            "generate.stop_token", "end the answer at this token; may be repeated"
        ),
        "--ignore-eos": KeyFlag(
            "generate.ignore_eos", "go on where the model would end its answer"
        ),
        "--seed": KeyFlag(
            "generate.seed", "same seed, same text; a new one each time when not given"
        ),
        "--logprobs": KeyFlag(
            "generate.logprobs",
            "with --json: log-probability of each token, and of N others at its place",
        ),
        "--thinking": KeyFlag(
            "generate.thinking",
            "what to do with the model's thinking: show or fold it on stderr, hide it, or turn it"
            " off (default: show)",
        ),
        "--thinking-budget": KeyFlag(
            "generate.thinking_budget", "end the thinking after so many tokens"
        ),
        "--tools": KeyFlag(
            "generate.tools", "JSON list of tools that the model may call, in OpenAI's form"
        ),
        "--json-schema": KeyFlag(
            "generate.json_schema", "answer with JSON that this schema allows"
        ),
        "--regex": KeyFlag("generate.regex", "answer with a text that this matches, all of it"),
        "--choice": KeyFlag("generate.choice", "answer with this text or another; repeated"),
        "--calculator": KeyFlag(
            "generate.calculator", "work out the expressions of a nanochat model as it asks for it"
        ),
        "--prompt-lookup": KeyFlag(
            "generate.prompt_lookup",
            "faster where the answer repeats what was said: guess by it, check several tokens at"
            " once; the text stays the same",
        ),
        "--n": KeyFlag("generate.n", "how many answers to give", "-n"),
    }
)


def _at_least(lowest: int) -> Callable[[str], int]:
    """Reads a whole number that is not smaller."""

    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not lowest <= int(text) < 2**31:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {lowest}")
        return int(text)

    return number


def parser() -> Parser:
    """The command line."""
    made = Parser(
        "infer",
        "Run an MLX model folder: one prompt in, one answer out.",
        'infer --model mlx_models/Qwen3-8B-4bit --prompt "Why is the sky blue?" --stream',
    )
    group = made.group("model")
    group.add_argument("--model", metavar="DIR|HUB_ID", help="model folder, or hub id of one")
    add_key(
        group,
        "--adapter",
        key="model.adapter",
        metavar="DIR",
        help="add an adapter to the weights, of mlx_lm.lora or PEFT",
    )
    group.add_argument(
        "--device", choices=("auto", "gpu", "cpu"), default="auto", help="(default: auto)"
    )
    add_key(
        group,
        "--load-bits",
        key="memory.load_bits",
        help="quantize weights that are not quantized when they are read",
    )
    add_key(
        group,
        "--draft-model",
        key="model.draft",
        help="a smaller model with the same tokens, which guesses what this one then checks;"
        " the text stays the same",
    )
    add_key(
        group,
        "--context",
        key="memory.context",
        help="most tokens of prompt and answer together (default: the model's own limit)",
    )
    add_key(
        group,
        "--kv-bits",
        key="memory.kv_bits",
        help="keep the KV cache at this many bits in the layers that allow it: 4 or 8",
    )
    add_key(
        group,
        "--kv-start",
        key="memory.kv_start",
        help="with --kv-bits: quantize the KV cache once it holds so many tokens",
    )
    group.add_argument(
        "--prompt-cache",
        metavar="FILE",
        help="keep what the prompt begins with, read, in this file; made if it is not there",
    )
    add_key(
        group,
        "--memory-limit",
        key="memory.limit",
        help="most memory for weights, KV caches and the rest, such as 12GB",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float16", "bfloat16", "float32"),
        default="auto",
        help="compute in this type; auto: the model's own on a GPU, float32 on the CPU"
        " (default: auto)",
    )
    group = made.group("prompt")
    group.add_argument("--prompt", metavar="TEXT|-", help="what to answer; - reads it from stdin")
    group.add_argument("--prompt-file", metavar="FILE", help="read it from a file, as UTF-8")
    add_key(group, "--system", key="generate.system", help="the system message")
    group.add_argument(
        "--raw", action="store_true", help="go on with the text itself, without chat template"
    )
    group = made.group("generation")
    for name, flag in GENERATE_FLAGS.items():
        names = (name,) if flag.short is None else (flag.short, name)
        add_key(group, *names, key=flag.key, help=flag.help)
    group.add_argument("--stream", action="store_true", help="show the answer as it comes")
    group = made.group("batch")
    group.add_argument(
        "--batch",
        metavar="FILE",
        help="answer a file of prompts: JSON lines, OpenAI batch lines, or one prompt a line",
    )
    group.add_argument(
        "--output",
        metavar="FILE",
        help="write the answers there as JSON lines; the same command goes on after a kill",
    )
    group.add_argument("--force", action="store_true", help="replace an output that is there")
    add_key(
        group,
        "--batch-size",
        key="memory.batch_size",
        help="most answers at once; fewer where memory is short",
    )
    group = made.group("chat")
    group.add_argument(
        "--chat",
        action="store_true",
        help="talk with the model; from a pipe, a turn a line. /help lists the commands",
    )
    group.add_argument(
        "--session", metavar="FILE", help="go on with this saved chat, and save every turn there"
    )
    group.add_argument(
        "--save-cache",
        action="store_true",
        help="beside a saved chat keep its KV cache, so that it opens without being read again",
    )
    group = made.group("scoring")
    group.add_argument(
        "--score", action="store_true", help="log-probabilities of a text in place of an answer"
    )
    group.add_argument("--text-file", metavar="FILE", help="the text; or give it as --prompt")
    group.add_argument("--ids-file", metavar="FILE", help="the text as a JSON array of token ids")
    group.add_argument(
        "--window",
        type=_at_least(2),
        metavar="TOKENS",
        help="score a longer text in windows of this size (default: the context)",
    )
    group.add_argument(
        "--stride",
        type=_at_least(1),
        metavar="TOKENS",
        help="tokens from one window to the next (default: half a window)",
    )
    group.add_argument("--html", metavar="FILE", help="also write a page of the coloured text")
    add_common(made)
    return made
