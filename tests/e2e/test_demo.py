"""The embedded demo model: converted to 4 bits, it answers in both languages, on any machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.cli import main as convert
from inference.cli import main as infer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo-4bit"
    assert convert(["--config", "demo", "--bits", "4", "--mlx-path", str(out), "--quiet"]) == 0
    return out


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (
            "How do I convert a model to 4 bits?",
            "Run `convert --hf-path PATH_OR_HUB_ID -q --bits 4`. The result goes to a folder whose "
            "name ends in `-4bit`.",
        ),
        (
            "What does --dry-run do?",
            "`--dry-run` prints the plan and writes nothing: a table of all modules, the output "
            "bytes, the bits per weight, the disk space needed and the peak memory expected.",
        ),
        (
            "怎样转换一个模型？",
            "运行 `convert --hf-path 路径或 HUB_ID`，例如 `convert --hf-path Qwen/Qwen3-8B`。"
            "加上 `-q --bits 4` 就会量化成 4 位。",
        ),
        (
            "组大小是什么？",
            "组大小是一行里共用一个缩放和一个偏置的相邻权重的个数。组大小为 64 时，"
            "每 64 个权重有自己的一对。",
        ),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--stream"]], ids=["whole", "streamed"])
def test_it_answers_at_four_bits(
    question: str,
    answer: str,
    flags: list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    command = ["--config", "demo", "--model", str(folder), "--prompt", question, "--quiet"]
    assert infer([*command, *flags]) == 0
    assert capsys.readouterr() == (f"{answer}\n", "")
