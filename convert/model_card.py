"""The model card: README.md of a converted folder, made from its receipt and the source's card.

Owns what the card says and which front matter it carries. The same receipt gives the same
text: there is no date in it, and no path, since cards are published. Reads no files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from configs.command import escape
from convert.front_matter import FrontMatter, FrontMatterError, read_front_matter, split_readme
from convert.show import gigabytes

HERE = "."  # what the commands name where no repository is known: the folder one stands in
_BEGIN, _END = "<!-- mlx-ferry: begin -->", "<!-- mlx-ferry: end -->"
_SECTION = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n", re.DOTALL)
_HUB = "https://huggingface.co"
_LINKED = re.compile(r"[\w.-]+/[\w.-]+/tree/[0-9a-f]{40}", re.ASCII)
_MOST_ROWS = 12
_LONGEST = 120
_TOLD = ("worse_than_rtn", "caveats")  # of a quality report: what must not be overlooked
# Of the source, not of what is made of it; its results were measured on other weights.
_REPLACED = ("library_name", "tags", "model-index")
_LINEAGE = ("base_model", "base_model_relation")


def card_warnings(readme: str) -> tuple[str, ...]:
    """What the user should know of a source's card before it is carried on."""
    try:
        read_front_matter(split_readme(readme)[0])
    except FrontMatterError as error:
        return (f"README.md: its front matter is left out of the new card: {error}",)
    return ()


def model_card(receipt: Mapping[str, Any], readme: str) -> str:
    """The card of a converted folder.

    Args:
        receipt: What conversion.json will hold; of its files nothing is used.
        readme: The source's README.md, empty if it has none. Its text stays as it is, under
            a section of ours; of its front matter all stays that holds for the result too.
    """
    head, body = split_readme(readme)
    try:
        front = read_front_matter(head)
    except FrontMatterError:
        front = FrontMatter("", {}, {})
    if ours := _SECTION.match(body.lstrip()):  # a folder that we made, converted once more
        body = body.lstrip()[ours.end() :]
    body = f"\n{body}" if body and not body.startswith(("\n", "\r\n")) else body
    return f"---\n{_front_matter(receipt, front)}---\n{_section(receipt, HERE)}{body}"


def card_for_repository(card: str, receipt: Mapping[str, Any], repo_id: str) -> str:
    """The card with commands that name a hub repository in place of the folder."""
    body = split_readme(card)[1]
    ours = _SECTION.match(body)
    if ours is None:
        return card
    return card[: len(card) - len(body)] + _section(receipt, repo_id) + body[ours.end() :]


def _front_matter(receipt: Mapping[str, Any], front: FrontMatter) -> str:
    options, base = receipt["options"], base_model(receipt)
    dequantized = bool(options.get("dequantize"))
    removed, added = list(_REPLACED), dict[str, str | list[str]]()
    if base is not None:
        removed += _LINEAGE
        added["base_model"] = base
        if receipt.get("adapter"):
            added["base_model_relation"] = "finetune"
        elif receipt["quantized_parameters"]:  # the hub has no word for a change of format
            added["base_model_relation"] = "quantized"
    added["library_name"] = "transformers" if dequantized else "mlx"
    if not front.values.get("pipeline_tag"):
        removed.append("pipeline_tag")
        added["pipeline_tag"] = "text-generation"
    tags = [tag for tag in front.values.get("tags") or () if tag != "mlx"]
    added["tags"] = tags if dequantized else [*tags, "mlx"]
    return front.changed(removed, added)


def base_model(receipt: Mapping[str, Any]) -> str | None:
    """The hub repository that the folder was made from, if it was one."""
    source = receipt["source"]
    return source["repo_id"] if source["origin"] == "hub" else None


def _section(receipt: Mapping[str, Any], model: str) -> str:
    lines = [
        _BEGIN,
        f"## {_name(receipt)} in {_format(receipt)} format, {_kind(receipt)}",
        "",
        f"Made from {_origin(receipt)} with mlx-ferry {_plain(receipt['versions']['mlx-ferry'])}."
        " [conversion.json](conversion.json) has the sha256 of every file, and what was done.",
        "",
        *_table(("", ""), _facts(receipt)),
        *_kept(receipt),
    ]
    for key, title in (("proof", "Held against the source"), ("quality", "Quality")):
        if rows := list(_figures(receipt.get(key))):
            lines += ["", *_table((title, ""), rows)]
    lines += [
        "",
        "```sh",
        f'mlx_lm.generate --model {model} --prompt "Hello"    # mlx-lm',
        f'infer --model {model} --prompt "Hello"              # mlx-ferry',
        "```",
        _END,
    ]
    return "".join(f"{line}\n" for line in lines)


def _name(receipt: Mapping[str, Any]) -> str:
    repo_id = receipt["source"]["repo_id"]
    if repo_id:
        return _plain(str(repo_id).rpartition("/")[2])
    return _plain(receipt["architecture"])


def _format(receipt: Mapping[str, Any]) -> str:
    return "Hugging Face" if receipt["options"].get("dequantize") else "MLX"


def _kind(receipt: Mapping[str, Any]) -> str:
    options = receipt["options"]
    if options.get("bits"):
        return f"{_plain(options['bits'])} bits"
    if receipt["quantized_parameters"]:
        return f"{receipt['bits_per_weight']:.1f} bits per weight"
    return _plain(options["dtype"] or "dtypes as in the source")


def _origin(receipt: Mapping[str, Any]) -> str:
    source = receipt["source"]
    repo_id, commit = source["repo_id"], source["commit"]
    if not repo_id:
        return "a local checkpoint"
    if source["origin"] == "hub" and _LINKED.fullmatch(f"{repo_id}/tree/{commit}"):
        link = f"{_HUB}/{repo_id}"
        return f"[{repo_id}]({link}) at commit [{commit[:12]}]({link}/tree/{commit})"
    where = "the hub" if source["origin"] == "hub" else _plain(source["origin"])
    at = f" at revision {_code(commit)}" if commit else ""
    return f"{_plain(repo_id)} of {where}{at}"


def _facts(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    options, files = receipt["options"], len(receipt["shards"])
    yield "Architecture", _code(receipt["architecture"])
    if adapter := receipt.get("adapter"):
        told = f"{adapter['modules']:,} modules, sha256 {_plain(adapter['sha256'])[:12]}"
        yield "Adapter fused into it", told
    quantized = receipt["quantized_parameters"]
    words = {"bits": "{} bits", "group_size": "groups of {}", "mode": "mode {}", "method": "{}"}
    if how := [
        text.format(_plain(options[key])) for key, text in words.items() if options.get(key)
    ]:
        yield "Quantization", ", ".join(how)
    if mixture := receipt.get("mixture"):
        yield "Mixed bits", _mixture(mixture)
    if quantized:
        yield "Quantized weights", f"{quantized:,}"
    if options["dtype"]:
        yield "Other tensors in" if quantized else "Weights in", _code(options["dtype"])
    yield "Weights", f"{receipt['parameters']:,}"
    yield "Bits per weight", f"{receipt['bits_per_weight']:.3f}, all tensors counted"
    nbytes = receipt["tensor_bytes"]
    size = f"{gigabytes(nbytes)} ({nbytes:,} bytes) in {files} file{'s' * (files != 1)}"
    yield "Size", size


def _mixture(mixture: Mapping[str, Any]) -> str:
    """What the bits were chosen by, and how many layers have how many."""
    found = Counter(int(layer["bits"]) for layer in mixture["layers"].values())
    layers = ", ".join(f"{count:,} at {bits} bits" for bits, count in sorted(found.items()))
    return _plain(f"{mixture['told']}: {layers}")


def _kept(receipt: Mapping[str, Any]) -> list[str]:
    """What is packed otherwise than the rest, as far as there is room."""
    if not receipt["quantized_parameters"]:
        return []
    rules = [(_code(rule["pattern"]), _rule(rule)) for rule in receipt["options"]["layers"]]
    kept = [(_code(entry["name"]), _plain(entry["reason"])) for entry in receipt["kept"]]
    lines = ["", *_table(("Layers", "Rule"), rules[:_MOST_ROWS])] if rules else []
    if len(rules) > _MOST_ROWS:
        lines += ["", f"{len(rules) - _MOST_ROWS:,} more rules are in conversion.json."]
    if len(kept) > _MOST_ROWS:
        lines += ["", f"{len(kept):,} weights are not quantized; conversion.json lists them."]
    elif kept:
        lines += ["", *_table(("Not quantized", "Why"), kept)]
    return lines


def _rule(rule: Mapping[str, Any]) -> str:
    if rule.get("keep"):
        return "not quantized"
    words = {"bits": "{} bits", "group_size": "groups of {}", "mode": "{}"}
    return ", ".join(text.format(_plain(rule[key])) for key, text in words.items() if rule.get(key))


def _figures(measured: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Rows for whatever was measured: numbers, and words that can't be a path."""
    if not isinstance(measured, Mapping):
        return
    for key, value in measured.items():
        if re.search("seconds|memory", str(key)):  # of the run, not of the model
            continue
        name = f"{prefix}{_plain(str(key).replace('_', ' '))}"
        match value:
            case bool():
                yield name, "yes" if value else "no"
            case int():
                yield name, f"{value:,}"
            case float():
                yield name, f"{value:.6g}"
            case str() if value and len(value) <= _LONGEST and not re.search(r"[/\\]", value):
                yield name, _plain(value)
            case {"value": float() | int() as figure, "standard_error": error}:
                yield name, f"{figure:.6g}" + (f" ± {error:.2g}" if error is not None else "")
            case Mapping():
                yield from _figures(value, f"{name}, ")
            case list() if key in _TOLD:
                yield from ((name, _plain(line)) for line in value)


def _table(head: tuple[str, str], rows: Any) -> list[str]:
    return [f"| {one} | {two} |" for one, two in (head, ("---", "---"), *rows)]


def _plain(text: object) -> str:
    """Text that can't leave its cell or become markup."""
    return re.sub(r"[`|<>\[\]\\]", " ", escape(str(text)))


def _code(text: object) -> str:
    """Text as code, which can't leave its cell either."""
    return f"`{re.sub('[`|<>]', ' ', escape(str(text)))}`"
