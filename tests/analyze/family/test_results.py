"""What is concluded: a planted ratio is found in every variant, and nothing is lost on the way to the page."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hemorrhage.analyze.family import results as stored
from hemorrhage.analyze.family.effects import DIFFER
from hemorrhage.analyze.family.outcomes import DAMAGE
from hemorrhage.analyze.family.results import Results
from hemorrhage.analyze.stored import encode
from tests.analyze.family.conftest import PLANTED


def test_a_planted_ratio_is_found(results: Results) -> None:
    damages = [each for each in results.effects if each.outcome.kind == DAMAGE]
    assert damages
    for effect in damages:
        (contrast,) = effect.contrasts
        assert contrast.verdict == DIFFER
        assert math.exp(contrast.low) < PLANTED < math.exp(contrast.high)


def test_equal_thresholds_differ_in_nothing(results: Results) -> None:
    placed = [each for each in results.effects if each.outcome.kind != DAMAGE]
    assert all(contrast.verdict != DIFFER for each in placed for contrast in each.contrasts)


def test_what_is_stored_is_what_was_concluded(reports: Path, results: Results) -> None:
    assert encode(stored.read(reports)) == encode(results)


def test_rows_say_what_is_known_of_a_model(results: Results) -> None:
    assert [row.model for row in results.models][:2] == ["a-0", "a-1"]
    assert results.models[0].facts.keys() >= {"loss on prose (nats)"}
    assert all(math.isfinite(value) for row in results.models for value in row.facts.values())
    assert results.confidence == pytest.approx(0.95)
