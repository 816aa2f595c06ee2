"""What a quality report says beside its figures: verdicts, and what makes the figures say less."""

from __future__ import annotations

from dataclasses import replace

from convert.model_card import model_card
from convert.quality.figures import Estimate, Figures
from convert.quality.report import Measured, Report
from tests.unit.test_model_card import RECEIPT

SURE = Estimate(0.1, 0.001)


def measured(kl: float, ratio: float = 1.1, source: float = 10.0) -> Measured:
    figures = Figures(
        kl_mean=Estimate(kl, 0.001),
        kl_median=SURE,
        kl_p99=SURE,
        kl_max=SURE,
        agreement=SURE,
        perplexity=Estimate(ratio * source, 0.1),
        reference_perplexity=Estimate(source, 0.1),
        perplexity_ratio=Estimate(ratio, 0.01),
    )
    return Measured(figures, (SURE, SURE))


def report(written: Measured, rtn: Measured | None) -> Report:
    return Report(
        form="4 bits, groups of 64, affine",
        text="t.txt",
        text_sha256="",
        calibration_sha256=(),
        tokens=3072,
        window=256,
        written=written,
        rtn=rtn,
        gain=Estimate(-0.1, 0.001) if rtn else None,
        seconds=1.0,
        peak_memory_bytes=10**6,
    )


def test_what_came_out_as_rounding_to_nearest_is_shown_once() -> None:
    same = report(measured(0.1), measured(0.1))
    assert same.is_rtn and "as rounding to nearest has it" in same.summary
    assert "these are the figures of rounding to nearest, too" in same.text_table()
    assert same.text_table().splitlines()[0].strip() == "4 bits, groups of 64, affine"
    other = report(measured(0.1), measured(0.2))
    assert not other.is_rtn and "(rounding to nearest: KL 0.2 ± 0.001)" in other.summary
    assert other.text_table().splitlines()[0].endswith("rounding to nearest")
    alone = report(measured(0.1), None)
    assert not alone.is_rtn and "rounding" not in alone.text_table() + alone.summary


def test_a_text_that_means_nothing_to_the_source_is_told_of() -> None:
    assert not list(report(measured(0.1), None).caveats())
    strange = report(measured(0.1, source=28000.0), None)
    (line,) = strange.caveats()
    assert line.startswith("the source itself does badly on t.txt (perplexity 2.8e+04)")
    assert line in strange.text_table() and strange.as_json()["caveats"] == [line]
    broken = measured(0.1, source=float("nan"))
    assert any("does badly" in each for each in report(broken, None).caveats())


def test_a_perplexity_that_fell_is_no_gain() -> None:
    (line,) = report(measured(0.1, ratio=0.9), None).caveats()
    assert line.startswith("the perplexity is lower than the source's, 0.9 of it, which is no gain")
    assert not list(report(measured(0.1, ratio=0.99), None).caveats())  # within its error


def test_worse_than_rounding_to_nearest_is_said_and_no_caveat() -> None:
    bad = replace(report(measured(0.2), measured(0.1)), gain=Estimate(0.1, 0.001))
    (line,) = bad.findings()
    assert line.startswith("WORSE than rounding to nearest: mean KL 0.2 against 0.1")
    assert bad.as_json()["worse_than_rtn"] == [line] and not bad.as_json()["caveats"]


def test_the_model_card_tells_of_it_too() -> None:
    bad = replace(report(measured(0.2), measured(0.1)), gain=Estimate(0.1, 0.001))
    receipt = {**RECEIPT, "quality": bad.as_json()}
    card = model_card(receipt, "")
    (line,) = bad.findings()
    assert f"| worse than rtn | {line} |" in card
