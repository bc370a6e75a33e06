"""Model cards on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hemorrhage.analyze.report.card import card
from hemorrhage.analyze.report.sections.cards import cards
from hemorrhage.analyze.study import Study


def test_the_recommended_variant_comes_first_and_a_failed_one_has_no_card(study: Study) -> None:
    written = cards(study)
    overall = study.recommended.overall
    assert next(iter(written)) == (overall.variant or overall.nearest)
    assert "sparsegpt-0.7" not in written
    assert len(written) == 35


def test_a_card_says_what_loads_it_without_the_checkpoint(study: Study) -> None:
    """A study that was read back knows no config.json."""
    sizes = [replace(each.size, engine="", hindrance="another architecture") for each in study.verdicts]
    verdicts = [replace(each, size=size) for each, size in zip(study.verdicts, sizes, strict=True)]
    written = cards(replace(study, verdicts=verdicts))
    assert "Nothing loads it: another architecture." in written["gptq-4"]
    assert "vllm serve" not in written["gptq-4"]


def test_the_page_and_an_export_write_the_same_card(
    study: Study, reports: Path, outputs: dict[str, list[Path]]
) -> None:
    written = cards(study)
    for folder in outputs["checkpoints"][:6]:
        assert card(folder, reports, folder.parent.name) == written[folder.parent.name]
