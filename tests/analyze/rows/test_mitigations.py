"""Recovery: its definition, its interval, which variants are compared, and what the page says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.report.sections.mitigations import proposals
from hemorrhage.analyze.rows import mitigations
from hemorrhage.analyze.rows.draws import Draws, Spread
from hemorrhage.analyze.rows.mitigations import Measured
from hemorrhage.analyze.rows.schema import Source
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.compress.methods.activation_quantization import activations
from hemorrhage.compress.methods.recovery import recovery
from hemorrhage.compress.methods.structured_pruning import width
from hemorrhage.compress.methods.unstructured_pruning import gblm, wanda
from hemorrhage.compress.methods.weight_quantization import awq, mixed, rtn
from tests.analyze.rows.made import evaluation, inputs_of, variant

SPEC = Spec(400, 0.95, 0)
SOURCE = Source("prose", "p")
UNCALIBRATED = Draws(Spread(0.0), frozenset({"awq", "recovery"}))
"""Draws that move nothing."""


def sample(rng: np.random.Generator, share: float, blocks: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Damage of a plain method on blocks of 100 tokens, and what a mitigation leaves that undoes ``share``."""
    plain = 100 * rng.lognormal(-1, 0.4, blocks)
    return plain, plain * (1 - share) + 8 * rng.normal(size=blocks)


def measured(*sums: np.ndarray) -> Measured:
    sizes = np.full(len(sums[0]), 100)
    counts = bootstrap.draws("prose", len(sizes), 400, 0)
    return mitigations.compare_sums("kl_mean", SOURCE, sums, sizes, counts)


def test_recovery_is_its_definition() -> None:
    plain, treated = np.array([4.0, 2.0, 6.0, 5.0]), np.array([1.0, 2.0, 3.0, 2.5])
    one = measured(plain, treated)
    found = mitigations.recovery(one.plain, one.treated, 0.95)
    assert found is not None
    assert found.value == pytest.approx(1 - treated.sum() / plain.sum())
    assert found.low < found.value < found.high
    counts = bootstrap.draws("prose", 4, 400, 0)
    again = 1 - (counts @ treated) / (counts @ plain)
    np.testing.assert_allclose((found.low, found.high), bootstrap.interval(again, 0.95, 4))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_interval_covers_the_true_recovery(share: float) -> None:
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(200):
        one = measured(*sample(rng, share))
        found = mitigations.recovery(one.plain, one.treated, 0.95)
        assert found is not None
        hits.append(found.low <= share <= found.high)
    assert 0.9 <= np.mean(hits) <= 0.99


def test_verdicts() -> None:
    rng = np.random.default_rng(2)
    plain, helped = sample(rng, 0.4)
    nothing, harmed, as_good = plain + 8 * rng.normal(size=32), 1.5 * plain, helped + 0.5 * rng.normal(size=32)

    def verdict(*sums: np.ndarray, smallest: float = 0.1) -> str:
        return mitigations.verdict(measured(*sums), 0.95, smallest)

    assert verdict(plain, helped) == verdict(plain, helped, nothing) == "recovers"
    assert verdict(plain, helped, smallest=0.39) == "recovers, perhaps too little"
    assert verdict(plain, helped, as_good) == "no better than its control"
    assert verdict(plain, helped, helped + 20 * rng.normal(size=32)) == "cannot tell from its control at this size"
    assert verdict(plain, harmed) == "harms"
    assert verdict(plain - plain.mean(), helped) == "no damage to recover"
    # Sure, and too small to matter; the same effect with a smaller limit; and too noisy to tell.
    assert verdict(plain, 0.95 * plain) == "not worth it"
    assert verdict(plain, 0.95 * plain, smallest=0.02) == "recovers"
    assert verdict(plain, nothing) == "not worth it"
    assert verdict(plain, nothing + 60 * rng.normal(size=32)) == "cannot tell at this size"


STUDIES = 200


@pytest.mark.parametrize(
    ("share", "blocks", "noise", "verdicts", "least", "most"),
    [
        # Planted nothings are not found, and where the study can tell they are called not worth it.
        (0.0, 32, 8, ("recovers", "recovers, perhaps too little"), 0.0, 0.05),
        (0.0, 32, 8, ("not worth it", "harms"), 0.7, 1.0),
        (0.0, 16, 40, ("cannot tell at this size",), 0.5, 1.0),
        # Planted effects are found, and a real one that is too small is not sold as one that matters.
        (0.3, 32, 8, ("recovers", "recovers, perhaps too little"), 0.95, 1.0),
        (0.3, 32, 8, ("not worth it", "harms"), 0.0, 0.05),
        (0.04, 64, 4, ("recovers",), 0.0, 0.05),
        (0.04, 64, 4, ("not worth it",), 0.9, 1.0),
    ],
)
def test_planted_effects_are_found_and_planted_nothings_are_not(
    share: float, blocks: int, noise: float, verdicts: tuple[str, ...], least: float, most: float
) -> None:
    """Two hundred simulated studies, each with a neutral control."""
    rng = np.random.default_rng(int(1000 * share) + blocks)
    found = 0
    for _ in range(STUDIES):
        plain = 100 * rng.lognormal(-1, 0.4, blocks)
        treated, control = (plain * (1 - undone) + noise * rng.normal(size=blocks) for undone in (share, 0.0))
        found += mitigations.verdict(measured(plain, treated, control), 0.95, 0.1) in verdicts
    assert least <= found / STUDIES <= most, found / STUDIES


def test_the_blocks_that_an_effect_takes_have_the_power_that_is_said() -> None:
    """With so many blocks, four of five studies see a recovery of the smallest size that matters."""
    rng = np.random.default_rng(5)
    plain, treated = sample(rng, 0.1, 200)
    needed = mitigations.blocks_needed(measured(plain, treated + 20 * rng.normal(size=200)), 0.95, 0.1)
    assert 100 < needed < 500
    seen = 0
    for _ in range(STUDIES):
        plain, treated = sample(rng, 0.1, needed)
        one = measured(plain, treated + 20 * rng.normal(size=needed))
        recovered = mitigations.recovery(one.plain, one.treated, 0.95)
        seen += recovered is not None and recovered.low > 0
    assert 0.65 <= seen / STUDIES <= 0.92, (needed, seen / STUDIES)


def test_a_control_with_an_effect_of_its_own_is_not_compared_with() -> None:
    rng = np.random.default_rng(2)
    plain, helped = sample(rng, 0.4)
    neutral = measured(plain, helped, plain + 8 * rng.normal(size=32))
    assert mitigations.not_neutral(neutral, 0.95) == ""
    assert mitigations.beyond_control(neutral, 0.95) is not None
    for harm, words in ((0.8, "is not neutral: it recovers -80 %"), (0.2, "is not known to be neutral")):
        harmful = measured(plain, helped, (1 + harm) * plain + 8 * rng.normal(size=32))
        assert words in mitigations.not_neutral(harmful, 0.95)
        assert mitigations.beyond_control(harmful, 0.95) is None
        assert mitigations.verdict(harmful, 0.95, 0.1) == "recovers, not compared with its control"
    # A control that recovers as much takes the credit all the same.
    assert mitigations.verdict(measured(plain, helped, helped), 0.95, 0.1) == "no better than its control"
    assert mitigations.not_neutral(measured(plain, helped), 0.95) == ""


def test_equivalence_is_claimed_of_a_control_at_the_margin_in_one_of_twenty_cases() -> None:
    rng = np.random.default_rng(3)
    neutral = 0
    for _ in range(300):
        plain, _ = sample(rng, 0.0)
        one = measured(plain, plain, (1 + mitigations.NEUTRAL) * plain + 8 * rng.normal(size=32))
        neutral += not mitigations.not_neutral(one, 0.95)
    assert neutral / 300 <= 0.085, neutral


def told(trials: Sequence[mitigations.Trial]) -> list[mitigations.TrialSummary]:
    """Trials as the page is given them."""
    return [mitigations.summarize(trial, SPEC) for trial in trials]


def test_what_is_compared_with_what() -> None:
    grid: dict[str, Any] = {"bits": 3, "group_size": 64}
    shape: dict[str, Any] = {"removed": 0.2}
    everything = [
        variant("wanda-0.5", "wanda", wanda.Settings(sparsity=0.5)),
        variant("wanda-0.6", "wanda", wanda.Settings(sparsity=0.6)),
        variant("gblm-0.5", "gblm", gblm.Settings(sparsity=0.5)),
        variant("gblm_shuffled-0.5", "gblm", gblm.Settings(sparsity=0.5, shuffled=True), seed=1),
        variant("gblm_shuffled_0-0.5", "gblm", gblm.Settings(sparsity=0.5, shuffled=True)),
        variant("rtn-3", "rtn", rtn.Settings(**grid), layer_bits=3.3),
        variant("rtn-4", "rtn", rtn.Settings(bits=4, group_size=64), layer_bits=4.3),
        variant("awq-3", "awq", awq.Settings(**grid)),
        variant("awq_on-3", "awq", awq.Settings(**grid), on="wanda-0.5"),
        variant("mixed", "mixed", mixed.Settings(budget=3.3, group_size=64), layer_bits=3.29),
        variant("w8-static", "activations", activations.Settings(activations="static")),
        variant("w8-token", "activations", activations.Settings()),
        variant("w8-smooth", "activations", activations.Settings(smooth=0.5)),
        variant("width-m", "width", width.Settings(**shape, importance="magnitude")),
        variant("width-t", "width", width.Settings(**shape)),
        variant("width-s", "width", width.Settings(**shape, shuffled=True)),
        variant("lora", "recovery", recovery.Settings(), on="width-m"),
        variant("lora_shuffled", "recovery", recovery.Settings(shuffled=True), on="width-m"),
    ]
    found = mitigations.trials(inputs_of(*everything), {}, [], SPEC, Draws())
    named = {(trial.treatment, trial.plain.name, trial.control.name if trial.control else None) for trial in found}
    assert named == {
        ("gblm-0.5", "wanda-0.5", "gblm_shuffled_0-0.5"),
        ("awq-3", "rtn-3", None),
        ("mixed", "rtn-3", None),
        ("w8-token", "w8-static", None),
        ("w8-smooth", "w8-token", None),
        ("width-t", "width-m", "width-s"),
        ("lora", "width-m", "lora_shuffled"),
    }
    assert {trial.missing for trial in found} != {""}  # nothing was evaluated, and that is said
    lines = [line for proposal in proposals(told(found)) for line in proposal.lines]
    assert any(line.startswith("awq_3_shuffled: {method: ") and '"shuffled": true' not in line for line in lines)
    assert not any(line.startswith("w8_token") for line in lines)


def test_lines_to_add_can_be_pasted(tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    trials = mitigations.trials(
        inputs_of(
            variant("rtn-3", "rtn", rtn.Settings(bits=3, group_size=64)),
            variant("awq-3", "awq", awq.Settings(bits=3, group_size=64)),
        ),
        {},
        [],
        SPEC,
        Draws(),
    )
    (lines,) = [proposal.lines for proposal in proposals(told(trials)) if "without a control" in proposal.reason]
    ((name, content),) = YAML(typ="safe").load(lines[0]).items()
    assert (name, content.pop("method")) == ("awq_3_shuffled", "awq")
    assert awq.Settings(**content) == awq.Settings(bits=3, group_size=64, shuffled=True)


def test_rows_of_recovery() -> None:
    found = inputs_of(
        variant("rtn-3", "rtn", rtn.Settings(bits=3, group_size=64), effective_bits=6.0),
        variant("awq-3", "awq", awq.Settings(bits=3, group_size=64), effective_bits=6.0),
        variant("awq_shuffled-3", "awq", awq.Settings(bits=3, group_size=64, shuffled=True), effective_bits=6.0),
    )
    evaluations = {"rtn-3": evaluation(0.5, 0), "awq-3": evaluation(0.3, 0), "awq_shuffled-3": evaluation(0.5, 0)}
    trials = mitigations.trials(found, evaluations, [], SPEC, UNCALIBRATED)
    rows = pd.DataFrame(mitigations.trial_rows(trials, SPEC)).set_index(["variant", "metric"])
    tag = "[w51-s51-b0-j0-n1200-f32]"
    name = f"recovery{{of=kl_mean,plain=rtn-3}}{tag}"
    assert rows.loc[("awq-3", name), "estimate"] == pytest.approx(0.4)
    assert rows.loc[("awq_shuffled-3", name), "estimate"] == pytest.approx(0, abs=1e-9)
    gap = f"recovery_beyond_control{{of=kl_mean,plain=rtn-3}}{tag}"
    assert rows.loc[("awq-3", gap), "estimate"] == pytest.approx(0.4)
    evaluations["awq_shuffled-3"] = evaluation(0.9, 0)
    trials = mitigations.trials(found, evaluations, [], SPEC, UNCALIBRATED)
    rows = pd.DataFrame(mitigations.trial_rows(trials, SPEC)).set_index(["variant", "metric"])
    assert rows.loc[("awq_shuffled-3", name), "estimate"] == pytest.approx(-0.8)
    assert "is not neutral" in rows.loc[("awq-3", gap), "reason"]


def test_a_comparison_holds_what_other_calibration_draws_would_change() -> None:
    """By its definition: the recovery's variance is that of the text, plus (1 - R)² that of the draws."""
    found = inputs_of(
        variant("rtn-3", "rtn", rtn.Settings(bits=3, group_size=64), effective_bits=6.0),
        variant("awq-3", "awq", awq.Settings(bits=3, group_size=64), effective_bits=6.0, calibrated=True),
    )
    evaluations, spec = {"rtn-3": evaluation(0.5, 0), "awq-3": evaluation(0.3, 1)}, Spec(4000, 0.95, 0)

    def recovery_with(share: float) -> tuple[Measured, float, float]:
        draws = Draws(Spread(share), frozenset({"awq"}))
        (one,) = [
            each for each in mitigations.trials(found, evaluations, [], spec, draws)[0].measured if "kl" in each.metric
        ]
        got = mitigations.recovery(one.plain, one.treated, 0.95)
        assert got is not None
        return one, got.value, got.high - got.low

    fixed, value, narrow = recovery_with(0.0)
    _, same, wide = recovery_with(0.2)
    assert fixed.of_text is None
    assert value == same
    draw_width = 2 * 2.069 * 0.2 * (1 - value)  # Student's t of 24 windows
    assert wide == pytest.approx(np.hypot(narrow, draw_width), rel=0.1)
    # Windows narrow the part of the text alone, so that it takes more of them, and at last none would do.
    needed = [mitigations.blocks_needed(recovery_with(share)[0], 0.95, 0.1) for share in (0.0, 0.03, 0.2)]
    assert needed[0] < needed[1]
    assert needed[2] == 0


def test_what_alters_a_variant_further_moves_with_it() -> None:
    """A repair of a pruned model: both sides come from one calibration draw, which their ratio does not hold."""
    found = inputs_of(
        variant("wanda-0.5", "wanda", wanda.Settings(sparsity=0.5), calibrated=True),
        variant("repaired", "recovery", recovery.Settings(), on="wanda-0.5", calibrated=False),
    )
    evaluations = {"wanda-0.5": evaluation(0.5, 0), "repaired": evaluation(0.3, 1)}
    widths = []
    for share in (0.0, 0.2):
        draws = Draws(Spread(share), frozenset({"wanda"}))
        (trial,) = mitigations.trials(found, evaluations, [], SPEC, draws)
        got = mitigations.recovery(trial.measured[0].plain, trial.measured[0].treated, 0.95)
        assert got is not None
        widths.append(got.high - got.low)
    assert widths[0] == pytest.approx(widths[1])
