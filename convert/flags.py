"""The flags of `convert`.

Owns their names, groups and help. What goes with what is the command's to say, what values they
take `configs.keys`'.
"""

from __future__ import annotations

from configs.arguments import Parser, add_common, add_key
from configs.mixtures import RECIPES


def parser() -> Parser:
    """The flags of `convert`."""
    made = Parser(
        "convert",
        "Carry a Hugging Face checkpoint across to an MLX model folder, plain or quantized.",
        "convert --hf-path Qwen/Qwen3-8B --quantize --bits 4",
    )
    places = made.add_argument_group("source and destination")
    add_key(
        places, "--hf-path", key="model.source", help="local folder or hub id of the checkpoint"
    )
    add_key(places, "--revision", key="model.revision", help="branch, tag or commit on the hub")
    add_key(places, "--step", key="model.step", help="step of training, of nanochat's own files")
    add_key(
        places,
        "--mlx-path",
        "--output-dir",
        key="model.path",
        help="folder to write (default: mlx_models/<name>-<bits>bit)",
    )
    places.add_argument(
        "--force",
        action="store_true",
        help="replace an existing destination once the new one is whole",
    )
    weights = made.add_argument_group("weights")
    add_key(weights, "-q", "--quantize", key="convert.quantize", help="quantize the weights")
    add_key(weights, "--bits", key="convert.bits", help="bits per weight")
    add_key(weights, "--group-size", key="convert.group_size", help="weights that share a scale")
    add_key(weights, "--mode", key="convert.mode", help="quantization mode")
    add_key(
        weights,
        "--method",
        key="convert.method",
        help="how codes and scales are found: search loses less, rtn (rounding to nearest, as"
        " mlx-lm does) takes a quarter of the time; what they make runs equally fast",
    )
    add_key(
        weights,
        "--calibrate",
        key="convert.calibrate",
        metavar="TEXT|self",
        help="text file for --method calibrated, which loses far less than search and takes far"
        " longer: the model reads it, and each layer is made for what it sees; self lets the model"
        " write one (a file of that name is ./self). With a target, a file also shows how much each"
        " layer counts",
    )
    add_key(
        weights,
        "--target-bpw",
        key="convert.target_bpw",
        help="mixed bits: each layer's own bits, group size and mode, chosen to lose least at so"
        " many bits per weight, all tensors counted",
    )
    add_key(
        weights,
        "--target-size",
        key="convert.target_size",
        help="mixed bits that come to weight files of at most this size",
    )
    add_key(
        weights,
        "--fit",
        key="convert.fit",
        help="mixed bits for a machine with this much memory, beside the KV cache of --context",
    )
    add_key(
        weights,
        "--context",
        key="memory.context",
        help="tokens of that KV cache (default: 8192, or as many as the model reads)",
    )
    add_key(
        weights,
        "--recipe",
        key="convert.recipe",
        metavar="NAME",
        help=f"mixed bits by a known recipe: {', '.join(RECIPES)}",
    )
    add_key(weights, "--dtype", key="convert.dtype", help="dtype of what is not quantized")
    add_key(
        weights, "--max-shard-size", key="convert.max_shard_size", help="largest size of one file"
    )
    add_key(
        weights,
        "--dequantize",
        key="convert.dequantize",
        help="make a plain Hugging Face folder of an MLX one",
    )
    weights.add_argument(
        "--fuse-adapter",
        metavar="DIR",
        help="add an adapter of mlx_lm.lora or PEFT to the weights",
    )
    texts = made.add_argument_group("tokenizer and template")
    add_key(
        texts, "--eos-token", key="tokenizer.eos_tokens", help="one more token that ends an answer"
    )
    add_key(
        texts,
        "--chat-template",
        key="tokenizer.chat_template",
        metavar="FILE",
        help="jinja file to use in place of the model's own template",
    )
    add_key(
        texts,
        "--trust-remote-code",
        key="tokenizer.trust_remote_code",
        help="run the source's own Python code where its config or tokenizer needs it",
    )
    running = made.add_argument_group("how it runs")
    running.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    running.add_argument(
        "--no-resume",
        action="store_true",
        help="start over, whatever an interrupted conversion has left",
    )
    running.add_argument(
        "--consume-source",
        action="store_true",
        help="fetch, convert and release a hub model shard by shard, for small disks",
    )
    running.add_argument(
        "--prove",
        action="store_true",
        help="hold the result against what transformers computes from the source",
    )
    quality = made.add_argument_group("quality")
    quality.add_argument(
        "--quality",
        nargs="?",
        const=True,
        metavar="DIR",
        help="measure what quantization lost, beside the source and rounding to nearest: of the"
        " folder DIR, or with a conversion of its result",
    )
    quality.add_argument(
        "--reference",
        metavar="SOURCE",
        help="what DIR was made from (default: what its receipt names)",
    )
    quality.add_argument(
        "--text",
        metavar="FILE",
        help="text to measure on (default: a short sample of prose, code, chat and Chinese)",
    )
    quality.add_argument(
        "--plot",
        metavar="FILE",
        help="draw the error of every layer, or of a sweep size against loss (.png, .svg or .pdf)",
    )
    quality.add_argument(
        "--sweep",
        nargs="?",
        const="",
        metavar="SPECS",
        help="make several quantizations one after another, measure and remove each, and show"
        " size against loss: rtn:4,search:3/32,search:mxfp4,search@4.5bpw (default: rtn and search"
        " at every number of bits, and mixed bits)",
    )
    after = made.add_argument_group("publishing")
    after.add_argument(
        "--upload-repo",
        metavar="ORG/NAME",
        help="upload the verified folder to this hub repository",
    )
    after.add_argument("--private", action="store_true", help="make that repository private")
    instead = made.add_argument_group("in place of a conversion")
    instead.add_argument(
        "--verify", metavar="DIR", help="check a model folder: exit 0, or 1 with what is wrong"
    )
    instead.add_argument(
        "--diff", nargs=2, metavar=("A", "B"), help="compare two model folders tensor by tensor"
    )
    add_common(made)
    return made
