"""Rules of claims about families, on made-up families whose verdict is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from hemorrhage.analyze.doctor.diagnose import LEAKAGE
from hemorrhage.analyze.family import claims, effects
from hemorrhage.analyze.family.claims import Evidence
from hemorrhage.analyze.family.effects import Movement
from hemorrhage.analyze.family.models import Model
from hemorrhage.analyze.family.outcomes import DAMAGE, DRIFT, LOSS, SPREAD_OF, THRESHOLD, Outcome
from hemorrhage.analyze.family.redundancy import Relation
from hemorrhage.analyze.verdicts.evidence import CONTRADICTED, NOT_DECIDED, NOT_MEASURED, SUPPORTED, Finding
from tests.analyze.family.made import family, model
from tests.conftest import ROOT


def outcome(kind: str, name: str, values: Mapping[str, float], is_ratio: bool = True) -> Outcome:
    return Outcome(kind, name, name, is_ratio, dict(values), {})


def evidence(
    models: Sequence[Model],
    outcomes: Sequence[Outcome],
    losses: Mapping[str, float] | None = None,
    relations: Sequence[Relation] = (),
) -> Evidence:
    draw = np.random.default_rng(0)
    known = losses or {each.name: 5 + draw.normal(0, 0.1) for each in models}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "loss", property(lambda self: known[self.name]))
        patch.setattr(Model, "facts", property(lambda self: {}))
        return Evidence(models, effects.effects(outcomes, models, 0.95), relations, 0.95)


def judged(key: str, of: Evidence) -> Finding:
    """The finding of a claim."""
    return next(each.finding for each in claims.judge(of) if each.key == key)


def noisy(models: Sequence[Model], means: Mapping[str, float], spread: float, seed: int = 1) -> dict[str, float]:
    draw = np.random.default_rng(seed)
    return {each.name: means[each.group] + draw.normal(0, spread) for each in models}


PLACEMENTS = family("before", "written", "both")
VARIANTS = ("rtn-3", "rtn-2", "magnitude-0.5", "noise-0.3")


@pytest.mark.parametrize(
    ("means", "spread", "expected"),
    [
        ({"before": 0.0, "written": 2.0, "both": 4.0}, 0.05, SUPPORTED),
        ({"before": 0.0, "written": 0.0, "both": 0.0}, 0.005, CONTRADICTED),
        ({"before": 0.0, "written": 0.0, "both": 0.0}, 0.5, NOT_DECIDED),
    ],
)
def test_norms_decide_where_groups_differ_beyond_their_loss(
    means: dict[str, float], spread: float, expected: str
) -> None:
    outcomes = [outcome(DAMAGE, name, noisy(PLACEMENTS, means, spread, seed)) for seed, name in enumerate(VARIANTS)]
    finding = judged("norms", evidence(PLACEMENTS, outcomes))
    assert finding.verdict == expected
    assert ("a family of this size shows a ratio of KL of" in finding.measured) == (expected == NOT_DECIDED)


def test_damage_that_is_training_loss_in_disguise_decides_nothing() -> None:
    losses = noisy(PLACEMENTS, {"before": 5.0, "written": 6.0, "both": 7.0}, 0.2)
    draw = np.random.default_rng(0)
    values = [{name: 2 * loss + draw.normal(0, 0.02) for name, loss in losses.items()} for _ in VARIANTS]
    outcomes = [outcome(DAMAGE, name, each) for name, each in zip(VARIANTS, values, strict=True)]
    assert judged("norms", evidence(PLACEMENTS, outcomes, losses)).verdict == NOT_DECIDED


def test_a_family_without_seeds_says_what_it_takes() -> None:
    models = family("llama", "mamba2", seeds=1)
    of = evidence(models, [outcome(DAMAGE, "rtn-3", {"llama-0": 0.0, "mamba2-0": 5.0})])
    finding = judged("architectures", of)
    assert finding.verdict == NOT_DECIDED
    assert "no two groups have 3 models each" in finding.measured


@pytest.mark.parametrize(
    ("slope", "half", "expected"),
    [(0.6, 0.2, CONTRADICTED), (0.0, 0.1, SUPPORTED), (0.1, 0.4, NOT_DECIDED)],
)
def test_the_width_of_collapse_is_universal_where_slopes_are_flat(slope: float, half: float, expected: str) -> None:
    models = family("tiny", "small", tokens=200_000)
    p = 0.001 if slope > half else 0.6
    movement = Movement("tokens", True, slope, slope - half, slope + half, p, 18, math.nan, math.nan, math.nan, 0.1)
    place = outcome(THRESHOLD, "RTN", dict.fromkeys((each.name for each in models), 3.0), False)
    place = Outcome(**{**vars(place), "measure": "2× perplexity (bits of the setting)"})
    made = effects.Effect(place, [], [], [movement], None)
    finding = judged("bits_universal", Evidence(models, [made], [], 0.95))
    assert finding.verdict == expected
    assert (finding.low, finding.high) == (movement.low, movement.high)


@pytest.mark.parametrize(("gap", "expected"), [(0.3, SUPPORTED), (-0.3, CONTRADICTED), (0.0, NOT_DECIDED)])
def test_tuned_models_are_compared_with_the_parent_of_their_seed(gap: float, expected: str) -> None:
    models = family("base", "instructed", "preferred")
    # Seeds differ by more than the gap: pairs take that away.
    of_seed = {0: 0.2, 1: 0.9, 2: 1.6}
    draw = np.random.default_rng(0)
    values = {
        each.name: of_seed[int(each.factors["seed"])] - (0 if each.group == "base" else gap) + draw.normal(0, 0.02)
        for each in models
    }
    finding = judged("tuned_steady", evidence(models, [outcome(SPREAD_OF, "recall", values, False)]))
    assert finding.verdict == expected
    assert finding.comparisons == 6


def test_tasks_at_their_floor_leave_alignment_open() -> None:
    models = family("base", "instructed")
    values = {each.name: math.nan for each in models}
    finding = judged("tuned_steady", evidence(models, [outcome(SPREAD_OF, "recall", values, False)]))
    assert finding.verdict == NOT_DECIDED
    assert "at its floor" in finding.measured


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ({"dense": 4.0, "iterative": 4.2, "one_shot": 4.6, "redrawn": 5.0}, SUPPORTED),
        ({"dense": 4.0, "iterative": 5.0, "one_shot": 4.6, "redrawn": 4.2}, CONTRADICTED),
        ({"dense": 4.0, "iterative": 4.2, "one_shot": 4.2, "redrawn": 5.0}, NOT_DECIDED),
    ],
)
def test_tickets_are_an_order_of_losses(means: dict[str, float], expected: str) -> None:
    models = family("dense", "iterative", "one_shot", "redrawn")
    losses = [
        outcome(LOSS, corpus, noisy(models, means, 0.02, seed), False) for seed, corpus in enumerate(("prose", "code"))
    ]
    assert judged("tickets", evidence(models, losses)).verdict == expected


def test_pruning_is_compared_inside_each_model_at_one_sparsity() -> None:
    models = family("small")
    draw = np.random.default_rng(0)
    values: dict[str, dict[str, float]] = {}
    for each in models:
        level = draw.normal(0, 3)
        for name, mean in {"by_size-0.5": 1.0, "by_loss-0.5": 0.5, "by_l1-0.5": 1.4, "by_loss-0.7": 0.0}.items():
            values.setdefault(name, {})[each.name] = level + mean + draw.normal(0, 0.02)
    of = evidence(models, [outcome(DAMAGE, name, each) for name, each in values.items()])
    by_loss = judged("pruned_by_loss", of)
    assert by_loss.verdict == SUPPORTED
    assert by_loss.estimate == pytest.approx(0.5, abs=0.05)
    assert judged("pruned_by_regularization", of).verdict == CONTRADICTED


@pytest.mark.parametrize(
    ("leaking", "healthy", "expected"),
    [(3, 0, SUPPORTED), (1, 0, NOT_DECIDED), (0, 0, CONTRADICTED), (3, 1, NOT_DECIDED)],
)
def test_leaks_are_found_at_their_doses_and_nowhere_else(leaking: int, healthy: int, expected: str) -> None:
    models = [model(f"leak_10-{seed}", "leak_10", (LEAKAGE,) if seed < leaking else ()) for seed in range(3)]
    models += [model(f"clean-{seed}", "clean", (LEAKAGE,) if seed < healthy else ()) for seed in range(3)]
    finding = judged("leaks", evidence(models, []))
    assert finding.verdict == expected
    assert f"leak_10 {leaking} of 3" in finding.measured
    assert f"in {healthy} of 3 models without one" in finding.measured


def test_damage_that_doubles_with_the_position_is_found() -> None:
    models = family("long")
    draw = np.random.default_rng(0)
    values = {each.name: math.log(1.2) + draw.normal(0, 0.01) for each in models}
    finding = judged("positions", evidence(models, [outcome(DRIFT, "rtn-3", values)]))
    assert finding.verdict == SUPPORTED
    assert finding.estimate == pytest.approx(math.log(1.2), abs=0.02)
    assert "KL at twice the position over KL, the mean over 1 variants, over 3 models: ×1." in finding.measured


@pytest.mark.parametrize(
    ("inside", "p", "expected"), [(0.8, 0.01, SUPPORTED), (-0.8, 0.01, CONTRADICTED), (0.3, 0.4, NOT_DECIDED)]
)
def test_redundancy_is_judged_inside_groups(inside: float, p: float, expected: str) -> None:
    relation = Relation("block influence, mean over blocks", 0.9, 0.001, inside, p, 12)
    assert judged("redundancy", evidence(family("a"), [], relations=[relation])).verdict == expected


def test_what_a_study_does_not_ask_is_no_row_and_names_the_study_that_does() -> None:
    assert claims.judge(evidence(family("a", "b"), [])) == []
    listed = claims.not_asked(["norms"])
    assert [each.key for each in listed] == [each.key for each in claims.CLAIMS if each.key != "norms"]
    assert {each.finding.verdict for each in listed} == {NOT_MEASURED}
    for each in listed:
        assert each.finding.measured == f"takes `params/studies/{each.study}`"
        assert (ROOT / "params/studies" / f"{each.study}.yaml").is_file()


def test_every_rule_is_registered() -> None:
    page = (ROOT / "docs/claims.md").read_text(encoding="utf-8")
    missing = [each.claim for each in claims.CLAIMS if f"| {each.claim} |" not in page]
    assert missing == []


def test_groups_and_variants_are_those_of_the_studies() -> None:
    texts = {each.study: (ROOT / "params/studies" / f"{each.study}.yaml").read_text("utf-8") for each in claims.CLAIMS}
    named: dict[str, Sequence[Any]] = {
        "norms": claims.NORMS,
        "architecture": (claims.TRANSFORMER, *claims.OTHERS),
        "alignment": (claims.UNTUNED, *claims.TUNED),
        "tickets": claims.TICKETS,
        "pruning": (*claims.BY_SIZE, *claims.BY_SIZE.values(), *claims.REGULARIZED),
        "data": (claims.CLEAN, f"{claims.LEAK}10"),
    }
    for study, names in named.items():
        for name in names:
            assert f"\n  {name}: " in texts[study], (study, name)
