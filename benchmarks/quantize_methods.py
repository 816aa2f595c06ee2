"""Quality and cost of each `--method` beside `mlx_lm.convert`, at equal bytes.

    python benchmarks/quantize_methods.py quality MODEL TEXT --tokens 3072 [--calibrate TEXT]
    python benchmarks/quantize_methods.py cost MODEL --repeats 3

`quality` holds the logits of every quantized folder against the source's, both computed in
float32 from the weights as they were written, over windows of 512 tokens of a text: the
Kullback-Leibler divergence with its standard error, how often the most likely token is the
same, and perplexity. It also gives what the weights lost, relative to rounding to nearest.
`cost` runs whole conversions, in turn, and gives seconds of processor time and of the clock.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

WINDOW = 512
FORMS = {
    **{f"{bits} bits": ["--bits", f"{bits}"] for bits in (2, 3, 4, 5, 6, 8)},
    **{mode: ["--mode", mode] for mode in ("mxfp4", "nvfp4", "mxfp8")},
}


def command(source: Path, out: Path, method: str, form: str, text: Path | None = None) -> list[str]:
    """The conversion of one kind, as a process."""
    flags = FORMS[form]
    if method != "mlx_lm":
        run = [sys.executable, "-m", "convert", "--quiet", "-q", "--method", method]
        if method == "calibrated":
            run += ["--calibrate", str(text)]
        return [*run, *flags, "--hf-path", str(source), "--mlx-path", str(out)]
    theirs = [flag.replace("--", "--q-") for flag in flags]
    if "--mode" in flags:
        groups = {"nvfp4": "16"}.get(form, "32")
        theirs += ["--q-group-size", groups, "--q-bits", "8" if form == "mxfp8" else "4"]
    run = [sys.executable, "-m", "mlx_lm", "convert", "-q", *theirs]
    return [*run, "--hf-path", str(source), "--mlx-path", str(out)]


def make(
    source: Path, out: Path, method: str, form: str, text: Path | None = None
) -> tuple[float, float]:
    """Convert; seconds of processor time, and of the clock."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command(source, out, method, form, text), capture_output=True, text=True, check=False
    )
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{method}, {form}: {done.stderr}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, wall


class Source:
    """The model, which computes in float32 with its own weights or with others.

    A quantized weight is computed with as the floats that it stands for: that is what MLX's
    kernels for quantized weights give too, and on a CPU it is much faster.
    """

    def __init__(self, path: Path) -> None:
        self._model, _ = load_model(path)
        parameters = tree_flatten(self._model.parameters())
        self.weights = {name: value.astype(mx.float32) for name, value in parameters}

    def log_probabilities(self, weights: dict[str, mx.array], ids: mx.array) -> mx.array:
        """[tokens, vocabulary] float32."""
        self._model.load_weights(list(weights.items()))
        logits = self._model(ids[None])[0]
        return logits - mx.logsumexp(logits, -1, keepdims=True)


def plain_weights(path: Path) -> tuple[dict[str, mx.array], list[str]]:
    """A folder's weights in float32, exactly as they are stored; and which are quantized."""
    model, config = load_model(path)
    stored = {
        name: value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value
        for name, value in tree_flatten(model.parameters())
    }
    packed = [name.removesuffix(".scales") for name in stored if name.endswith(".scales")]
    for module in packed:
        own = config["quantization"].get(module)
        form = own if isinstance(own, dict) else config["quantization"]
        stored[f"{module}.weight"] = mx.dequantize(
            stored[f"{module}.weight"],
            stored.pop(f"{module}.scales"),
            stored.pop(f"{module}.biases", None),
            group_size=form["group_size"],
            bits=form["bits"],
            mode=form.get("mode", "affine"),
            dtype=mx.float32,
        )
    mx.eval(stored)
    return stored, [f"{module}.weight" for module in packed]


def with_error(values: np.ndarray) -> str:
    """A mean with its standard error."""
    return f"{values.mean():.4g} ± {values.std(ddof=1) / len(values) ** 0.5:.2g}"


def measure(
    source: Source, weights: dict[str, mx.array], windows: list[tuple[mx.array, mx.array]]
) -> dict[str, np.ndarray]:
    """For each token its divergence, whether the likeliest is the same, and two losses.

    Args:
        source: The model.
        weights: Those to measure.
        windows: Token ids, and the log-probabilities with the source's own weights.
    """
    found: dict[str, list[np.ndarray]] = {"kl": [], "same": [], "loss": [], "source loss": []}
    for ids, theirs in windows:
        ours = source.log_probabilities(weights, ids)
        found["kl"].append(np.array(mx.sum(mx.exp(theirs) * (theirs - ours), -1)))
        found["same"].append(np.array(mx.argmax(theirs, -1) == mx.argmax(ours, -1)))
        for name, log in (("loss", ours), ("source loss", theirs)):
            picked = mx.take_along_axis(log[:-1], ids[1:, None], -1)
            found[name].append(-np.array(picked)[:, 0])
    return {name: np.concatenate(values) for name, values in found.items()}


def quality(chosen: argparse.Namespace) -> None:
    """Print a table: a line for each form and method."""
    tokenizer = Tokenizer.from_file(str(chosen.model / "tokenizer.json"))
    ids = mx.array(tokenizer.encode(chosen.text.read_text("utf-8")).ids[: chosen.tokens])
    source = Source(chosen.model)
    windows = []
    for at in range(0, ids.size - 1, WINDOW):
        window = ids[at : at + WINDOW]
        windows.append((window, source.log_probabilities(source.weights, window)))
        mx.eval(windows[-1])
    print("| form | method | KL mean | median | p99 | vs rtn | same top | ppl | source | MSE |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for form in chosen.forms:
        rounded_kl, rounded, before = 0.0, dict[str, float](), dict[str, mx.array]()
        methods = ["rtn", "mlx_lm", "search"]
        if chosen.calibrate and "bits" in form:
            methods.append("calibrated")
        for method in methods:
            with tempfile.TemporaryDirectory() as folder:
                make(chosen.model, Path(folder) / "out", method, form, chosen.calibrate)
                weights, packed = plain_weights(Path(folder) / "out")
            if method != "mlx_lm" or any(
                not mx.array_equal(weights[name], value) for name, value in before.items()
            ):
                found = measure(source, weights, windows)
            before = weights
            errors = {
                name: mx.mean(mx.square(source.weights[name] - weights[name])).item()
                for name in packed
            }
            kl = found["kl"]
            if method == "rtn":
                rounded_kl, rounded = kl.mean(), errors
            ratio = statistics.fmean(errors[name] / rounded[name] for name in errors)
            perplexity, of_source = (np.exp(found[n].mean()) for n in ("loss", "source loss"))
            print(
                f"| {form} | {method} | {with_error(kl)} | {np.median(kl):.4g} "
                f"| {np.quantile(kl, 0.99):.3g} | {kl.mean() / rounded_kl:.3f} "
                f"| {found['same'].mean():.4f} | {perplexity:.4f} | {of_source:.4f} "
                f"| {ratio:.3f} |",
                flush=True,
            )


def cost(chosen: argparse.Namespace) -> None:
    """Print seconds for a billion weights and their ratio to rounding to nearest."""
    weights = sum(value.size for _, value in tree_flatten(load_model(chosen.model, lazy=True)[0]))
    for form in chosen.forms:
        figures: dict[str, list[tuple[float, float]]] = {"rtn": [], "search": []}
        for _ in range(chosen.repeats):
            for method, taken in figures.items():
                with tempfile.TemporaryDirectory(dir=chosen.model.parent) as folder:
                    taken.append(make(chosen.model, Path(folder) / "out", method, form))
        for column, unit in enumerate(("processor", "clock")):
            base, ours = ([run[column] for run in figures[name]] for name in figures)
            ratios = [mine / theirs for mine, theirs in zip(ours, base, strict=True)]
            billions = weights / 1e9
            print(
                f"{form:7} {unit:9} s per 10^9 weights"
                f"   rtn {statistics.median(base) / billions:6.1f}"
                f"   search {statistics.median(ours) / billions:6.1f}"
                f"   ratio {statistics.median(ratios):.2f}"
                f" ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = arguments.add_subparsers(required=True)
    for name, run in (("quality", quality), ("cost", cost)):
        mode = modes.add_parser(name)
        mode.add_argument("model", type=Path)
        mode.add_argument("--forms", nargs="+", choices=list(FORMS), default=["4 bits"])
        mode.set_defaults(run=run)
        if name == "quality":
            mode.add_argument("text", type=Path)
            mode.add_argument("--tokens", type=int, default=3072)
            mode.add_argument("--calibrate", type=Path)
        else:
            mode.add_argument("--repeats", type=int, default=3)
    chosen = arguments.parse_args()
    chosen.run(chosen)


if __name__ == "__main__":
    main()
