"""The table of the Pareto front."""

from __future__ import annotations

from hemorrhage.analyze.report.sections.tradeoff import front_rows, section
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.shipping import FrontPoint


def point(size: float, probability: float, low: float | None = 0.05) -> FrontPoint:
    return FrontPoint(
        "rtn-4",
        "weight_quantization",
        2_500_000,
        size,
        size,
        "",
        0.123,
        low,
        0.2,
        on_front=True,
        probability=probability,
    )


def test_rows_are_smaller_than_the_base_and_often_enough_on_the_front() -> None:
    rows = front_rows([point(0.3, 0.9), point(0.3, 0.04), point(1.0, 0.9), point(0.25, 0.05, low=None)])
    assert [(row.size, row.probability) for row in rows] == [("30.0", "90"), ("25.0", "5")]
    assert [row.interval for row in rows] == ["0.05 to 0.2", ""]
    assert (rows[0].megabytes, rows[0].kl) == ("2.5", "0.12")


def test_the_section_of_a_study(study: Study) -> None:
    content = section(study)
    assert set(content.figures) == {"tradeoff|prose", "tradeoff|code"} | {f"speed|{corpus}" for corpus in content.timed}
    assert set(content.rows) == {"prose", "code"}
    assert {row.variant for row in content.rows["prose"]} <= set(study.inputs.variants)
