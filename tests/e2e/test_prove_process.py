"""`--prove` with transformers in its own process: memory, no torch, a torch that is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convert.cli import main
from tests.factories_models import tiny_model

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from convert.cli import main
sys.exit(main(sys.argv[1:]))
"""
PEAKS = """
import sys
from pathlib import Path
from convert.proof.prove import prove
proof = prove(Path(sys.argv[1]), Path(sys.argv[2]))
assert proof.ok, proof.verdict
print(len(proof.rows) - 2, proof.peak_memory_bytes, proof.reference_peak_memory_bytes)
"""
LAYER = {"hidden_size": 384, "intermediate_size": 2048, "num_attention_heads": 12}
LAYER_BYTES = 4 * (2 * 384 * 384 + 2 * 384 * 64 + 3 * 384 * 2048)


def python(code: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )


def test_the_command_with_its_process(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["--hf-path", str(llama), "--mlx-path", str(out), "-q", "--prove"]
    done = python("from convert.__main__ import main; main()", *command)
    assert done.returncode == 0 and done.stdout == f"{out}\n"
    assert "proven: on 96 tokens it computes what LlamaForCausalLM of transformers" in done.stderr
    receipt = (out / "conversion.json").read_bytes()
    assert json.loads(receipt)["proof"]["ok"]
    assert main([*command, "--force", "--quiet"]) == 0
    assert (out / "conversion.json").read_bytes() == receipt


@pytest.mark.parametrize("verify", [False, True])
def test_without_torch_it_says_what_it_cannot_prove(
    verify: bool, llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["--verify", str(llama)] if verify else ["--hf-path", str(llama), "-q"]
    command += [] if verify else ["--mlx-path", str(out)]
    done = python(WITHOUT_TORCH, *command, "--prove")
    assert done.returncode == 1 and done.stdout == "" and not out.exists()
    assert done.stderr == (
        "error: --prove: needs torch, which is not installed; without it nothing can say whether "
        "the result computes what transformers computes: RoPE, norms, attention, the layout of "
        "matrices; pip install 'mlx-ferry[prove]', or leave it out\n"
    )


def test_a_torch_that_does_not_start(llama: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libtorch.so: not for this machine')")
    command = ["--hf-path", str(llama), "--mlx-path", str(tmp_path / "out"), "--prove"]
    code = "import sys; from convert.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, *command, PYTHONPATH=str(broken.parent))
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: --prove: transformers can't compute it (")
    assert done.stderr.count("\n") == 1


def test_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    peaks = {}
    for layers in (2, 6):
        source = tiny_model(tmp_path / f"{layers}", "llama", num_hidden_layers=layers, **LAYER)
        out = tmp_path / f"{layers}-out"
        assert main(["--hf-path", str(source), "--mlx-path", str(out), "-q", "--quiet"]) == 0
        done = python(PEAKS, source, out, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        ran, *found = map(int, done.stdout.split())
        assert ran == layers
        peaks[layers] = found
    for few, many in zip(*peaks.values(), strict=True):
        assert many - few < 2 * LAYER_BYTES
