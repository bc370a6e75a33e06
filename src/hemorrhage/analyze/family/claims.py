"""Claims that only families of models can decide, each with what this study measured of it: study.json.

Rules are registered in docs/claims.md. A model, trained with a seed, is the unit, and a rule knows groups and variants
by the names that params/studies gives them. Absence of a difference is no evidence: a claim that there is none needs
every interval inside limits. What is left open says what four of five such studies would have shown.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from hemorrhage.analyze.doctor.diagnose import LEAKAGE
from hemorrhage.analyze.family.effects import DIFFER, LEAST, POWER, Effect, holm
from hemorrhage.analyze.family.models import Model, groups
from hemorrhage.analyze.family.outcomes import DAMAGE, DRIFT, LOSS, SPREAD_OF, THRESHOLD
from hemorrhage.analyze.family.redundancy import Relation
from hemorrhage.analyze.stats.bootstrap import t_interval
from hemorrhage.analyze.verdicts.evidence import (
    AGREE,
    CONTRADICTED,
    NOT_DECIDED,
    NOT_MEASURED,
    SUPPORTED,
    Finding,
    decide,
)

SAME_RATIO = math.log(1.25)
"""Two groups whose KL differs by less, whole intervals counted, do not differ in what matters."""

SAME_BITS = 0.25
"""The same of where a curve reaches a level, in bits per tenfold."""

NORMS = ("before", "written", "both", "layer_norm", "opt_before", "opt_after")
TRANSFORMER, OTHERS = "llama", ("mamba2", "hybrid", "mixture")
UNTUNED, TUNED = "base", ("instructed", "preferred")
TICKETS = ("iterative", "one_shot", "redrawn")
CLEAN, LEAK = "clean", "leak_"
BY_SIZE = {"by_loss": "by_size", "sparsegpt": "magnitude"}
REGULARIZED = {"by_l1": "by_size", "by_movement": "by_size"}
"""Sweep -> the one by size that it is compared with, at the same sparsity and budget."""

REDUNDANT = "block influence"


@dataclass(frozen=True)
class Evidence:
    """The models of a study, and how they compare."""

    models: Sequence[Model]
    effects: Sequence[Effect]
    relations: Sequence[Relation]
    confidence: float

    @cached_property
    def groups(self) -> dict[str, list[Model]]:
        """The models by group."""
        return groups(self.models)

    def of(self, *kinds: str) -> list[Effect]:
        """List the effects of some kinds of outcome."""
        return [effect for effect in self.effects if effect.outcome.kind in kinds]


@dataclass(frozen=True)
class Claim:
    """A claim, who makes it, the study in params/studies that asks, and the rule; None: this study does not ask."""

    key: str
    claim: str
    source: str
    study: str
    judge: Callable[[Evidence], Finding | None]


@dataclass(frozen=True)
class Assessment:
    """A claim with the finding of this study."""

    key: str
    claim: str
    source: str
    study: str
    finding: Finding


def judge(evidence: Evidence) -> list[Assessment]:
    """Judge every claim that this study asks about."""
    judged = [(claim, claim.judge(evidence)) for claim in CLAIMS]
    return [
        Assessment(claim.key, claim.claim, claim.source, claim.study, finding)
        for claim, finding in judged
        if finding is not None
    ]


# Groups that differ.


def _norms(evidence: Evidence) -> Finding | None:
    if len([group for group in evidence.groups if group in NORMS]) < 2:
        return None
    return _differ(evidence.of(DAMAGE), evidence.confidence, "outcomes, KL of a variant")


def _architectures(evidence: Evidence) -> Finding | None:
    if TRANSFORMER not in evidence.groups or not any(group in OTHERS for group in evidence.groups):
        return None
    return _differ(evidence.of(DAMAGE, THRESHOLD), evidence.confidence, "outcomes, KL of a variant or a threshold")


def _differ(effects: Sequence[Effect], confidence: float, what: str) -> Finding:
    """Support that groups differ beyond the loss of their models in 80 % of outcomes, Holm's correction over these.

    Contradict it where in 80 % every pair lies within the limits of what is the same.
    """
    tested = [each for each in effects if any(math.isfinite(contrast.p) for contrast in each.contrasts)]
    if not tested:
        return Finding(
            NOT_DECIDED, f"no two groups have {LEAST} models each that were measured: a comparison takes them"
        )
    known = [each for each in tested if each.disguise and math.isfinite(each.disguise.groups_given_loss)]
    p = holm([each.disguise.groups_given_loss for each in known if each.disguise])
    beyond = sum(value < 1 - confidence for value in p)
    some = sum(any(contrast.verdict == DIFFER for contrast in each.contrasts) for each in tested)
    same = sum(_is_same(each) for each in tested)
    number = len(tested)
    verdict = NOT_DECIDED
    if beyond >= AGREE * number:
        verdict = SUPPORTED
    elif same >= AGREE * number:
        verdict = CONTRADICTED
    measured = (
        f"of {number} {what}, two groups differ in {some}, beyond the loss of their unaltered models in {beyond}; "
        f"in {same} every difference is surely small"
    )
    if verdict == NOT_DECIDED:
        measured += _least([each.least_seen for each in tested if each.outcome.is_ratio])
    return Finding(verdict, measured, comparisons=number)


def _is_same(effect: Effect) -> bool:
    limit = SAME_RATIO if effect.outcome.is_ratio else SAME_BITS
    known = [each for each in effect.contrasts if math.isfinite(each.p)]
    return all(-limit < each.low and each.high < limit for each in known)


def _least(seen: Sequence[float]) -> str:
    """Say what a family of this size shows."""
    known = sorted(value for value in seen if math.isfinite(value))
    if not known:
        return ""
    ratio = math.exp(known[len(known) // 2])
    return f"; a family of this size shows a ratio of KL of {ratio:.3g} in four of five cases, less is not decided"


# What moves with size and training.


def _universal(evidence: Evidence) -> Finding | None:
    """Decide by the slopes of the width at which perplexity doubles, over parameters and tokens."""
    moved = [
        movement
        for effect in evidence.of(THRESHOLD)
        if "2×" in effect.outcome.measure and "bits" in effect.outcome.measure
        for movement in effect.movements
        if movement.factor in ("parameters", "tokens")
    ]
    if not any("tokens" in model.factors for model in evidence.models):
        return None
    if not moved:
        return Finding(NOT_DECIDED, "no curve reaches twice the perplexity in enough models to have a slope over them")
    p = holm([each.p for each in moved])
    shown = sum(value < 1 - evidence.confidence for value in p)
    flat = all(each.low > -SAME_BITS and each.high < SAME_BITS for each in moved)
    verdict = CONTRADICTED if shown else SUPPORTED if flat else NOT_DECIDED
    widest = max(moved, key=lambda each: abs(each.slope))
    slope = f"{widest.slope:+.2g} bits per tenfold {widest.factor} ({widest.low:+.2g} to {widest.high:+.2g})"
    measured = f"of {len(moved)} slopes {shown} are shown (Holm); the steepest: {slope}, over {widest.models} models"
    if verdict == NOT_DECIDED:
        measured += f"; less than {SAME_BITS} bits would count as the same, and the intervals are wider"
    return Finding(verdict, measured, widest.slope, widest.low, widest.high, "bits per tenfold", len(moved))


# Paired differences: children with the seed of their parent, variants of one model.


def _steady(evidence: Evidence) -> Finding | None:
    """Decide by the spread over strategies of a model less that of the tuned one of its seed, over tasks and models."""
    tuned = [group for group in TUNED if group in evidence.groups]
    if UNTUNED not in evidence.groups or not tuned:
        return None
    effects, differences = evidence.of(SPREAD_OF), []
    for group in tuned:
        for model in evidence.groups[group]:
            parent = _of_seed(evidence.groups[UNTUNED], model)
            gaps = [each.outcome.values[parent.name] - each.outcome.values[model.name] for each in effects if parent]
            known = [gap for gap in gaps if math.isfinite(gap)]
            differences += [float(np.mean(known))] if known else []
    if not effects or len(differences) < LEAST:
        return Finding(
            NOT_DECIDED,
            f"{len(differences)} tuned models have a spread beside their base's: models this small get too little "
            "right on tasks with answers, and a spread of what is at its floor says nothing",
        )
    return _paired(differences, "spread of the base less that of its tuned model", "share of accuracy", evidence, False)


def _of_seed(models: Sequence[Model], child: Model) -> Model | None:
    return next((model for model in models if model.factors.get("seed") == child.factors.get("seed")), None)


def _by_loss(evidence: Evidence) -> Finding | None:
    return _pruned(evidence, BY_SIZE, "by size over by loss")


def _by_regularization(evidence: Evidence) -> Finding | None:
    return _pruned(evidence, REGULARIZED, "by size over by regularization (L1, movement)")


def _pruned(evidence: Evidence, pairs: Mapping[str, str], what: str) -> Finding | None:
    """Decide by ln of KL by size over KL by the other, at the same sparsity, the mean over pairs in each model."""
    values = {effect.outcome.name: effect.outcome.values for effect in evidence.of(DAMAGE)}
    matched = [
        (size, other)
        for sweep, by_size in pairs.items()
        for other in values
        if other.startswith(f"{sweep}-") and (size := by_size + other.removeprefix(sweep)) in values
    ]
    if not matched:
        return None
    gaps = [
        [values[size][model.name] - values[other][model.name] for size, other in matched] for model in evidence.models
    ]
    known = [float(np.mean(each)) for each in gaps if np.isfinite(each).all()]
    return _paired(known, f"ln of KL {what}, {len(matched)} pairs a model", "ln of KL over KL", evidence, True)


def _paired(values: Sequence[float], what: str, unit: str, evidence: Evidence, is_ratio: bool) -> Finding:
    """Decide by Student's interval of a difference over models, and 80 % of these."""
    number = len(values)
    if number < LEAST:
        return Finding(NOT_DECIDED, f"{number} models have {what}: an interval takes {LEAST}", comparisons=number)
    mean, (low, high) = float(np.mean(values)), t_interval(np.array(values), evidence.confidence)
    verdict = decide(low, high, sum(value > 0 for value in values), number)
    written = [math.exp(each) if is_ratio else each for each in (mean, low, high)]
    times, (value, least, most) = "×" if is_ratio else "", (f"{each:.3g}" for each in written)
    measured = f"{what}, over {number} models: {times}{value} ({least} to {most})"
    if verdict == NOT_DECIDED:
        error = float(np.std(values, ddof=1)) / math.sqrt(number)
        quantiles = stats.t.ppf((1 + evidence.confidence) / 2, number - 1) + stats.t.ppf(POWER, number - 1)
        shown = float(quantiles) * error
        seen = f"a ratio of {math.exp(shown):.3g}" if is_ratio else f"{shown:.3g}"
        measured += f"; so few models show {seen} in four of five cases, less is not decided"
    return Finding(verdict, measured, mean, low, high, unit, number)


# Lottery tickets.


def _tickets(evidence: Evidence) -> Finding | None:
    """Decide by the loss of the unaltered models: each step of the order must be shown on every corpus."""
    if not set(TICKETS) <= set(evidence.groups):
        return None
    sides = [side for effect in evidence.of(LOSS) for side in _orders(effect)]
    if not sides:
        return Finding(NOT_DECIDED, f"a group has fewer than {LEAST} models: a comparison takes them")
    right, wrong = sides.count(1), sides.count(-1)
    verdict = SUPPORTED if right == len(sides) else CONTRADICTED if wrong and not right else NOT_DECIDED
    measured = (
        f"of {len(sides)} steps of the order, over corpora, {right} are shown and {wrong} are shown the other way round"
    )
    if verdict == NOT_DECIDED:
        seen = [effect.least_seen for effect in evidence.of(LOSS) if math.isfinite(effect.least_seen)]
        measured += f"; a family of this size shows {max(seen):.2g} nats in four of five cases" if seen else ""
    return Finding(verdict, measured, comparisons=len(sides))


def _orders(effect: Effect) -> Iterator[int]:
    """Yield for each two neighbours of the order: 1 where the first surely has less loss, -1 where more, 0 else."""
    for better, worse in itertools.pairwise(TICKETS):
        for each in effect.contrasts:
            if {each.first, each.second} == {better, worse} and math.isfinite(each.p):
                gap = each.difference if each.second == worse else -each.difference
                yield (1 if gap > 0 else -1) if each.verdict == DIFFER else 0


# Leaks, positions, redundancy.


def _leaks(evidence: Evidence) -> Finding | None:
    """Decide by what Model Doctor names: every model with a leak, and none without."""
    planted = [model for group, members in evidence.groups.items() if group.startswith(LEAK) for model in members]
    healthy = [model for model in evidence.models if model not in planted]
    if not planted or CLEAN not in evidence.groups:
        return None
    doses = {
        group: sum(map(_is_called_leaking, members))
        for group, members in evidence.groups.items()
        if group.startswith(LEAK)
    }
    wrong = sum(map(_is_called_leaking, healthy))
    named = ", ".join(f"{group} {count} of {len(evidence.groups[group])}" for group, count in doses.items())
    measured = f"the Doctor names a leak in {named}; in {wrong} of {len(healthy)} models without one"
    right = sum(doses.values())
    verdict = SUPPORTED if right == len(planted) and not wrong else CONTRADICTED if wrong >= right else NOT_DECIDED
    if verdict == NOT_DECIDED:
        measured += "; the smallest doses are below what it sees"
    return Finding(
        verdict, measured, right / len(planted), unit="share of planted leaks found", comparisons=len(planted)
    )


def _is_called_leaking(model: Model) -> bool:
    return any(each.cause == LEAKAGE for each in model.study.examined.diagnoses)


def _positions(evidence: Evidence) -> Finding | None:
    """Decide by what a doubling of the position multiplies KL by, the mean over variants in each model."""
    drifts = evidence.of(DRIFT)
    if not drifts:
        return None
    values = [
        float(np.mean(known))
        for model in evidence.models
        if (
            known := [
                each.outcome.values[model.name] for each in drifts if math.isfinite(each.outcome.values[model.name])
            ]
        )
    ]
    what = f"KL at twice the position over KL, the mean over {len(drifts)} variants"
    return _paired(values, what, "ln of KL per doubling of the position", evidence, True)


def _redundancy(evidence: Evidence) -> Finding | None:
    """Decide by the rank correlation of block influence with damage inside groups."""
    relation = next((each for each in evidence.relations if each.measure.startswith(REDUNDANT)), None)
    if relation is None:
        return None
    many = f"over {relation.models} models {relation.correlation:+.2f} (p = {relation.p:.2g})"
    if not math.isfinite(relation.inside):
        return Finding(NOT_DECIDED, f"Spearman's correlation of block influence with damage {many}; no group has seeds")
    inside = f"inside groups {relation.inside:+.2f} (p = {relation.inside_p:.2g})"
    measured = f"Spearman's correlation of block influence with damage: {many}, {inside}"
    verdict = NOT_DECIDED
    if relation.inside_p < 1 - evidence.confidence:
        verdict = SUPPORTED if relation.inside > 0 else CONTRADICTED
    return Finding(
        verdict, measured, relation.inside, unit="rank correlation inside groups", comparisons=relation.models
    )


STUDY = "arXiv 2503.23924"

CLAIMS = (
    Claim("norms", "How layers are normalized decides how much damage a model takes.", STUDY, "norms", _norms),
    Claim(
        "bits_universal",
        "The width at which quantization collapses is the same whatever a model's size and training.",
        f"{STUDY}, open question 3",
        "scale",
        _universal,
    ),
    Claim(
        "architectures",
        "Models that are no transformers break elsewhere.",
        f"{STUDY}, open question 2",
        "architecture",
        _architectures,
    ),
    Claim(
        "tuned_steady",
        "Tuned models are steadier over decoding strategies than the model that they were made of.",
        f"{STUDY}, next check 2",
        "alignment",
        _steady,
    ),
    Claim(
        "tickets",
        "Tickets found in rounds learn better than those found at one stroke, and these than the same drawn anew.",
        f"{STUDY}; arXiv 1803.03635",
        "tickets",
        _tickets,
    ),
    Claim(
        "redundancy",
        "The more redundant a model's blocks are, the better it bears damage.",
        STUDY,
        "tickets",
        _redundancy,
    ),
    Claim("pruned_by_loss", "Pruning by loss does less damage than by size.", STUDY, "pruning", _by_loss),
    Claim(
        "pruned_by_regularization",
        "Pruning by regularization does less damage than by size.",
        STUDY,
        "pruning",
        _by_regularization,
    ),
    Claim(
        "leaks", "A leak of the text that a model is measured on shows in how it is measured.", STUDY, "data", _leaks
    ),
    Claim("positions", "Damage grows with the position in a long text.", STUDY, "context", _positions),
)


def not_asked(claims: Sequence[str]) -> list[Assessment]:
    """List the claims that no study asked about, each with the study that does."""
    return [
        Assessment(
            each.key, each.claim, each.source, each.study, Finding(NOT_MEASURED, f"takes `params/studies/{each.study}`")
        )
        for each in CLAIMS
        if each.key not in claims
    ]
