"""The summary's numbers and sentences."""

from __future__ import annotations

import math

from hemorrhage.analyze.report.sections import summary
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.study import Study
from tests.analyze.report.examples import inputs, numbers, row, variant


def test_the_base_model() -> None:
    base = summary.base_model(
        inputs(),
        numbers(
            row("base", "perplexity[p]", 12.345, 12.0, 13.0, dataset="prose"),
            row("base", "mean_accuracy", 0.5, dataset=ALL_TASKS),
        ),
        ["prose", "code"],
    )
    assert (base.parameters, base.bits) == ("2.5 M", "16.0")
    assert base.perplexities == [summary.Perplexity("prose", "12.35", "12.00 to 13.00")]
    assert (base.accuracy, base.chance) == ("50\u00a0%", "")


def test_the_noise_floor_is_that_of_the_repeated_base() -> None:
    again = numbers(
        row("base", "kl_mean[p]", 1e-9, dataset="prose"),
        row("base", "kl_max[p]", 0.0, dataset="prose"),
        row("base", "ln_perplexity_ratio[p]", 0.0, dataset="prose"),
    )
    text = summary.noise_sentence(inputs(), again, ["prose"])
    assert "gives a KL of 1e-09 nats per token (at most 0) and a log-perplexity ratio of 0 on prose" in text
    assert summary.noise_sentence(inputs(evaluated=False), again, ["prose"]).startswith("There was no A/A run")
    assert summary.noise_sentence(inputs(), again, ["code"]) == ""


def test_detectable_effects_are_medians() -> None:
    effects = numbers(
        *(
            row(f"rtn-{bits}", "ln_perplexity_ratio[p]", 0.5, dataset="prose", mde=math.log1p(effect))
            for bits, effect in ((8, 0.01), (4, 0.02), (2, 0.5))
        ),
        row("rtn-8", "accuracy_change", 0.0, dataset="recall", mde=0.2),
    )
    study = inputs(*(variant(f"rtn-{bits}") for bits in (8, 4, 2)))
    assert summary.detectable_sentence(study, effects, ["prose"]) == (
        "Minimum detectable effect at 80\u00a0% power (median of the variants): "
        "2\u00a0% of perplexity on prose; 20 points of accuracy on recall."
    )
    assert summary.detectable_sentence(inputs(), effects, ["prose"]) == ""


def test_the_section_of_a_study(study: Study) -> None:
    content = summary.section(study)
    assert (content.total, content.failed) == (36, 1)
    assert content.base.parameters == "134.5 M"
    assert [each.corpus for each in content.base.perplexities] == ["prose", "code"]
