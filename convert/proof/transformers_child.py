"""The child process in which transformers computes a source, and what it writes of that.

The order arrives on stdin, the answer leaves on stdout line by line, hidden states and
logits as safetensors files in a folder. Run by its path. Owns that, and the token ids; how
the model is built and its weights come and go is for `transformers_model` to know. Knows
nothing of MLX.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.proof.transformers_model import Blocks

SETTINGS = {
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # the weights of a block one by one, not all at once
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "critical",
}


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    os.environ.update(SETTINGS)
    sys.path.append(str(Path(__file__).parents[2]))  # last: this project's names shadow none
    from convert.proof.transformers_model import UnprovableError

    order = json.load(sys.stdin)

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        answer(done=carry_out(order, answer), peak_memory_bytes=peak_bytes())
    except UnprovableError as error:
        answer(unprovable=str(error))


def carry_out(order: dict[str, Any], answer: Callable[..., None]) -> dict[str, Any]:
    """Build the model and, where a folder is given, run it; gives the facts of it.

    Raises:
        UnprovableError: transformers can't.
    """
    from convert.proof.transformers_model import Blocks, build

    blocks = Blocks(build(order["config"]), order["tensors"])
    facts = {
        "model": type(blocks.model).__name__,
        "largest_block_bytes": blocks.largest_bytes,
        "most_layers": blocks.most_layers,
    }
    if order["folder"] is not None:
        ids = token_ids(order, blocks.model.config)
        facts |= compute(blocks, ids, Path(order["folder"]), answer)
    return facts


def token_ids(order: dict[str, Any], config: Any) -> list[int]:
    """The text by the source's tokenizer, or ids spread over the vocabulary without one."""
    text_config = config.get_text_config()
    rows = text_config.vocab_size
    most = min(order["most_tokens"], getattr(text_config, "max_position_embeddings", None) or 512)
    ids: list[int] = []
    if order["tokenizer"] is not None:
        from tokenizers import Tokenizer

        ids = Tokenizer.from_file(order["tokenizer"]).encode(order["text"]).ids
        ids = [token for token in ids if token < rows]
    if len(ids) < order["fewest_tokens"]:
        ids = [(2654435761 * (step + 1)) % rows for step in range(most)]
    return ids[:most]


def compute(
    blocks: Blocks, ids: list[int], folder: Path, answer: Callable[..., None]
) -> dict[str, Any]:
    """Run the model and write what each decoder layer takes and gives, and the logits.

    Writes `<list of layers>-<n>.safetensors` with `input` and `output` [tokens, hidden], and
    `ends.safetensors` with `ids` [tokens] and `logits` [tokens, vocabulary].
    """
    import torch
    from safetensors.torch import save_file

    from convert.proof.transformers_model import UnprovableError

    place = {
        id(layer): (path, n) for path, ls in blocks.lists.items() for n, layer in enumerate(ls)
    }
    ran: dict[str, int] = {}
    inputs: dict[int, Any] = {}
    count = 0

    def before(name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        blocks.load(names[name])
        if id(module) in place:
            given: Any = args[0] if args else kwargs["hidden_states"]
            inputs[id(module)] = given[0].float().clone(memory_format=torch.contiguous_format)

    def after(name: str, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal count
        blocks.free(names[name])
        count += 1
        answer(block=name, number=count, of=len(names))
        if id(module) not in place:
            return
        path, number = place[id(module)]
        if ran.setdefault(path, 0) != number:
            raise UnprovableError(f"transformers runs {name} out of order or more than once")
        ran[path] += 1
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        pair = {"input": inputs.pop(id(module)), "output": hidden[0].float().contiguous()}
        save_file(pair, folder / f"{path}-{number:05d}.safetensors")

    names = {}
    for name, module in blocks.blocks.items():
        own = [f"{name}.{key}" for key in module.state_dict()]
        if not own:
            continue
        names[name] = own
        module.register_forward_pre_hook(
            lambda m, a, k, name=name: before(name, m, a, k), with_kwargs=True
        )
        module.register_forward_hook(
            lambda m, a, k, o, name=name: after(name, m, a, k, o), with_kwargs=True
        )
    blocks.load(blocks.resident)
    with torch.inference_mode():
        logits = blocks.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    ends = {"ids": torch.tensor(ids, dtype=torch.int32), "logits": logits.float().contiguous()}
    save_file(ends, folder / "ends.safetensors")
    if not logits.isfinite().all():
        raise UnprovableError("transformers' own logits are infinite or NaN")
    if not ran:
        raise UnprovableError("transformers' model has no list of layers")
    path = max(ran, key=lambda each: ran[each])
    return {"layers": ran[path], "path": path, "tokens": len(ids)}


def peak_bytes() -> int:
    """The largest resident memory that this process has had."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text("ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
