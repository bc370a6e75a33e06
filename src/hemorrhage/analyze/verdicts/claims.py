"""The study's claims, each with what this run measured of it and whether that supports it: claims.json.

A claim is judged by how far a method may go (hemorrhage.analyze.verdicts.limits), by paired differences of damage (the
same resampled windows on both sides), or by metrics of the base model. Its rule is registered in docs/claims.md, never
sees how the claim is to come out, and is applied to the numbers that its own source printed
(hemorrhage.analyze.verdicts.published): a rule that these cannot pass is no test of the source.

A verdict has two stages. The first, here, is about the model of this study. Whether it holds for other models takes
other studies: ``hemorrhage claims STUDY...``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hemorrhage.analyze.curves.entries import LOCATED, NO_CLIFF
from hemorrhage.analyze.inputs import BASE, Variant
from hemorrhage.analyze.rows.decoding import SPREAD
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES
from hemorrhage.analyze.rows.stability import Stability
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.analyze.stored import Json
from hemorrhage.analyze.verdicts import causes, combinations, limits, mapping, published
from hemorrhage.analyze.verdicts.decoding import compare_stability
from hemorrhage.analyze.verdicts.evidence import (
    AGREE,
    CONTRADICTED,
    LEAST_METHODS,
    NOT_DECIDED,
    NOT_MEASURED,
    SUPPORTED,
    Evidence,
    Finding,
    Pair,
    compare,
    decide,
    finite,
    methods_of,
)
from hemorrhage.analyze.verdicts.limits import NEAR, Point
from hemorrhage.analyze.verdicts.signatures import is_aligned

FEW_WINDOWS = 30
FEW_COMPARISONS = 3

QUANTIZED = "weight_quantization"
UNSTRUCTURED = "unstructured_pruning"
STRUCTURED = ("structured_pruning", "depth_pruning", "low_rank")
WITHOUT_RANKS = ("structured_pruning", "depth_pruning")
"""Families that claims are about."""

PAPER = "arXiv 2503.23924"
REPOSITORY = "the authors' repository Model-Hemorrhage"
FOLLOW_UP = "its follow-up, npj Artif. Intell. 2:21 (2026)"

FIFTH = 0.2
"""Share of the base's bytes that "five-fold" means."""

KEPT = 0.9

LOSS = (0.15, 0.2)
"""Share of the accuracy that pruning is said to lose at equal bytes; as everywhere, give or take NEAR."""


@dataclass(frozen=True)
class Claim:
    """A claim of the study, who makes it, how sure the study is of it, the rule that judges it, and whether the rule
    looks at quantized variants."""

    key: str
    claim: str
    source: str
    grade: str
    judge: Callable[[Evidence], Finding]
    quantized: bool = False


@dataclass(frozen=True)
class Assessment:
    """A claim, the study's own grade of it, the finding, and how far that can be trusted.

    ``on_its_source``: what the same rule says of the numbers that the source printed. ``generality``: the second stage.
    """

    key: str
    claim: str
    source: str
    study_grade: str
    finding: Finding
    grade: str
    grade_reason: str
    on_its_source: str = ""
    generality: str = ""

    def as_json(self) -> dict[str, Json]:
        """Plain content: the finding's fields next to the claim's."""
        return {
            "key": self.key,
            "claim": self.claim,
            "source": self.source,
            "study_grade": self.study_grade,
            **dataclasses.asdict(self.finding),
            "grade": self.grade,
            "grade_reason": self.grade_reason,
            "on_its_source": self.on_its_source,
            "generality": self.generality,
        }


# How far a method may go.


def _curves(evidence: Evidence, families: Sequence[str], calibrated: bool = False) -> dict[str, list[Point]]:
    """Collect the points of each method; ``calibrated``: of methods that read calibration text alone."""
    curves: dict[str, list[Point]] = {}
    for variant in evidence.variants(*families):
        damage = evidence.damage(variant.name)
        reads = bool(variant.manifest.get("calibrated"))
        if damage is not None and variant.axis != "routing" and (reads or not calibrated):
            x = -_bits(variant) if variant.family == QUANTIZED else variant.severity
            if math.isfinite(x):
                curves.setdefault(variant.method, []).append(Point(x, damage.value, damage.low, damage.high))
    return curves


def _bits(variant: Variant) -> float:
    """Return the bits that a layer's weights take, scales included; the label's where they were not counted."""
    return float(variant.manifest.get("layer_bits", variant.settings.get("bits", math.nan)))


def _structured_half(evidence: Evidence) -> Finding:
    return limits.collapsed_by(_curves(evidence, WITHOUT_RANKS), 0.5, "structured pruning")


def _structured_third(evidence: Evidence) -> Finding:
    return limits.collapses_between(_curves(evidence, WITHOUT_RANKS), 0.3, 0.45, "structured pruning")


def _unstructured(evidence: Evidence) -> Finding:
    curves = _curves(evidence, (UNSTRUCTURED,), calibrated=True)
    return limits.fine_up_to(curves, 0.6, "calibrated unstructured pruning")


def _three_bits(evidence: Evidence) -> Finding:
    return limits.bits(_curves(evidence, (QUANTIZED,)))


def _five_fold(evidence: Evidence) -> Finding:
    """Test that a quantized variant of a fifth of the base's bytes keeps more than 90 % of the accuracy."""
    small = [variant for variant in evidence.variants(QUANTIZED) if evidence.size(variant) <= FIFTH]
    known = [evidence.results.task_losses[v.name] for v in small if v.name in evidence.results.task_losses]
    if not known:
        least = min((evidence.size(variant) for variant in evidence.variants(QUANTIZED)), default=math.nan)
        also = "" if math.isnan(least) else f"; the smallest has {100 * least:.0f} %"
        how = "quantize the embeddings, too, as in {method: rtn, bits: [3], embeddings: 3}"
        return Finding(NOT_MEASURED, f"no quantized variant of at most 20 % of the base's bytes{also}: {how}")
    loss, replicates, blocks = min(known, key=lambda known: known[0])
    low, high = bootstrap.interval(1 - replicates, evidence.spec.confidence, blocks)
    verdict = SUPPORTED if low > KEPT else CONTRADICTED if high < KEPT else NOT_DECIDED
    measured = f"the best of {len(known)} such variants keeps {100 * (1 - loss):.0f} % of the accuracy"
    return Finding(verdict, measured, 1 - loss, finite(low), finite(high), "share of accuracy kept", len(known))


# Comparisons.


def _quantized_or_pruned(evidence: Evidence) -> Finding:
    """Compare every pruned variant with the quantized one that is nearest below it in bytes."""
    return compare(evidence, _of_equal_bytes(evidence), "a pruned with a quantized variant of no more bytes")


def _of_equal_bytes(evidence: Evidence) -> list[Pair]:
    quantized = [variant for variant in evidence.variants(QUANTIZED) if math.isfinite(evidence.size(variant))]
    pairs = []
    for pruned in evidence.variants(UNSTRUCTURED, *STRUCTURED):
        smaller = [variant for variant in quantized if evidence.size(variant) <= evidence.size(pruned)]
        if smaller:
            pairs.append(Pair(pruned, max(smaller, key=evidence.size)))
    return pairs


def _pruning_loses(evidence: Evidence) -> Finding:
    """Measure the accuracy that pruning loses at the bytes of the smallest quantized variant that keeps 90 %.

    Of each pruned variant of at most those bytes, give or take NEAR of the base's. Supported where the interval of the
    mean loss lies in 15 to 20 %, give or take NEAR; contradicted where it lies outside.
    """
    losses = evidence.results.task_losses
    keeping = [v for v in evidence.variants(QUANTIZED) if v.name in losses and losses[v.name][0] < 1 - KEPT]
    if not keeping:
        return Finding(NOT_MEASURED, "no quantized variant keeps 90 % of the accuracy")
    reference = min(keeping, key=evidence.size)
    members = evidence.variants(UNSTRUCTURED, *STRUCTURED)
    near = [v for v in members if abs(evidence.size(v) - evidence.size(reference)) <= NEAR and v.name in losses]
    if not near:
        least = min((evidence.size(v) for v in members), default=math.nan)
        also = "" if math.isnan(least) else f"; the smallest has {100 * least:.0f} %"
        share = f"{100 * evidence.size(reference):.0f} %"
        return Finding(
            NOT_MEASURED, f"no pruned variant of the bytes of {reference.name} ({share} of the base's){also}"
        )
    mean = float(np.mean([losses[v.name][0] for v in near]))
    replicates = np.mean([losses[v.name][1] for v in near], axis=0)
    low, high = bootstrap.interval(replicates, evidence.spec.confidence, min(losses[v.name][2] for v in near))
    inside, outside = low >= LOSS[0] - NEAR and high <= LOSS[1] + NEAR, high < LOSS[0] - NEAR or low > LOSS[1] + NEAR
    verdict = SUPPORTED if inside else CONTRADICTED if outside else NOT_DECIDED
    measured = f"{len(near)} pruned variants of the bytes of {reference.name} lose {100 * mean:.0f} % of the accuracy"
    return Finding(verdict, measured, mean, finite(low), finite(high), "share of accuracy lost", len(near))


def _structured_or_not(evidence: Evidence) -> Finding:
    """Compare blocks, widths or ranks taken out with the same share of single weights, by method and share."""
    single = [v for v in evidence.variants(UNSTRUCTURED) if ":" not in str(v.settings.get("sparsity"))]
    single = [variant for variant in single if variant.manifest.get("calibrated")]
    pairs = [
        Pair(structured, unstructured)
        for structured in evidence.variants(*STRUCTURED)
        for unstructured in single
        if abs(structured.severity - unstructured.severity) <= NEAR
    ]
    finding = compare(evidence, pairs, "structured with unstructured pruning of the same share")
    methods = methods_of(pair.first for pair in pairs)
    if finding.verdict in (SUPPORTED, CONTRADICTED) and len(methods) < LEAST_METHODS:
        measured = f"{finding.measured}; {methods[0]} alone is structured, {LEAST_METHODS} methods are needed"
        return dataclasses.replace(finding, verdict=NOT_DECIDED, measured=measured)
    return finding


def _patterned(evidence: Evidence) -> Finding:
    """Compare 2:4 or 4:8 with half of the weights wherever they are, by the same method."""
    members = evidence.variants(UNSTRUCTURED)
    pattern = [v for v in members if re.fullmatch(r"(2:4|4:8)", str(v.settings.get("sparsity")))]
    free = [v for v in members if v.settings.get("sparsity") == 0.5]
    pairs = [Pair(bound, loose) for bound in pattern for loose in free if bound.method == loose.method]
    return compare(evidence, pairs, "N:M with unstructured pruning at 50 %")


def _transfer(evidence: Evidence) -> Finding:
    """Compare variants that differ by their calibration set alone, on the texts of both sets (swapped sets).

    For two sets A and B of a method at a severity: half of ln d(A on B) + ln d(B on A) - ln d(A on A) - ln d(B on B), d
    the damage. What makes a text fragile, or a set better for all, cancels.
    """
    swapped = [each for pair in _swapped(evidence) if (each := _swap(evidence, *pair)) is not None]
    if not swapped:
        return Finding(
            NOT_MEASURED, "no method was calibrated on two of the evaluated corpora; `hemorrhage claims` joins studies"
        )
    values = np.array([value for value, _ in swapped])
    resampled = np.mean([replicates for _, replicates in swapped], axis=0)
    low, high = bootstrap.interval(resampled, evidence.spec.confidence, evidence.blocks())
    dearer = int((values > 0).sum())
    measured = f"{dearer} of {len(swapped)} methods and severities are damaged more by the other corpus' calibration"
    unit = "ln of damage with the other set over damage with the own"
    verdict = decide(low, high, dearer, len(swapped))
    return Finding(verdict, measured, float(values.mean()), finite(low), finite(high), unit, len(swapped))


def _corpus_of(variant: Variant) -> str:
    """Return the one corpus that a variant was calibrated on; empty where it was none or several."""
    calibration = variant.manifest.get("calibration")
    corpora = calibration["corpora"] if calibration else []
    return corpora[0] if len(corpora) == 1 else ""


def _swapped(evidence: Evidence) -> Iterator[tuple[Variant, Variant]]:
    members = [v for v in evidence.variants(QUANTIZED, UNSTRUCTURED, *STRUCTURED) if _corpus_of(v) in evidence.corpora]
    for place, first in enumerate(members):
        for second in members[place + 1 :]:
            same = (first.method, first.settings, first.on) == (second.method, second.settings, second.on)
            if same and _corpus_of(first) != _corpus_of(second):
                yield first, second


def _swap(evidence: Evidence, first: Variant, second: Variant) -> tuple[float, Floats] | None:
    gaps = []
    for own, other in ((first, second), (second, first)):
        on = [_corpus_of(own)]
        matched, foreign = (evidence.damage(variant.name, on) for variant in (own, other))
        if matched is None or foreign is None or min(matched.replicates.min(), foreign.replicates.min()) <= 0:
            return None
        gaps.append((math.log(foreign.value / matched.value), np.log(foreign.replicates / matched.replicates)))
    return (gaps[0][0] + gaps[1][0]) / 2, (gaps[0][1] + gaps[1][1]) / 2


def _mismatch(evidence: Evidence) -> Finding:
    """Measure how much worse a method that read calibration text fares off its domain than one that read none.

    Of a calibrated variant and a data-free one of the same family and severity: ln of damage off the calibration's
    corpora over damage on them, calibrated minus data-free. What makes a corpus fragile for any method cancels.
    """
    inside = [corpus for corpus in evidence.corpora if corpus in evidence.spec.calibration]
    outside = [corpus for corpus in evidence.corpora if corpus not in evidence.spec.calibration]
    if not inside or not outside:
        return Finding(NOT_MEASURED, "not both a corpus that calibration saw and one that it did not were evaluated")
    differences = []
    for calibrated, data_free in _calibrated_pairs(evidence):
        first, second = (_off_over_on(evidence, variant, inside, outside) for variant in (calibrated, data_free))
        if first is not None and second is not None:
            differences.append((first[0] - second[0], first[1] - second[1]))
    if not differences:
        return Finding(NOT_MEASURED, "no calibrated and data-free variants of the same severity that are damaged")
    values = np.array([value for value, _ in differences])
    resampled = np.mean([replicates for _, replicates in differences], axis=0)
    low, high = bootstrap.interval(resampled, evidence.spec.confidence, evidence.blocks())
    worse = int((values > 0).sum())
    measured = (
        f"calibrated on {', '.join(evidence.spec.calibration)}: relative to a data-free method, {worse} of "
        f"{len(values)} calibrated variants are worse on {', '.join(outside)}"
    )
    verdict = decide(low, high, worse, len(values))
    unit = "ln of damage off over on the calibration's domain"
    return Finding(verdict, measured, float(values.mean()), finite(low), finite(high), unit, len(values))


def _calibrated_pairs(evidence: Evidence) -> Iterator[tuple[Variant, Variant]]:
    """Pair each calibrated variant with the data-free ones of its family, severity and curve."""
    for family in (QUANTIZED, UNSTRUCTURED):
        members = evidence.variants(family)
        for calibrated in (variant for variant in members if variant.manifest.get("statistics")):
            for data_free in (variant for variant in members if not variant.manifest.get("statistics")):
                if calibrated.severity == data_free.severity and calibrated.identity == data_free.identity:
                    yield calibrated, data_free


def _off_over_on(
    evidence: Evidence, variant: Variant, inside: Sequence[str], outside: Sequence[str]
) -> tuple[float, Floats] | None:
    """Compute ln of damage off the domain over damage on it; None where either is not surely above 0."""
    off, on = (evidence.damage(variant.name, corpora) for corpora in (outside, inside))
    if off is None or on is None or min(off.value, on.value, off.replicates.min(), on.replicates.min()) <= 0:
        return None
    return math.log(off.value / on.value), np.log(off.replicates / on.replicates)


def _doubled(evidence: Evidence) -> Finding:
    """Test that a perplexity above twice the base's comes of the compression's strength or its calibration."""
    return causes.judge(causes.causes(evidence))


# Decoding, shapes.


def _steady(evidence: Evidence) -> Finding:
    """Compare how much accuracy varies over decoding strategies in the aligned and the unaligned model, by items."""
    compared = compare_stability(evidence.inputs, evidence.spec)
    if compared is None:
        return Finding(
            NOT_MEASURED, "one model only; decode.sibling_model of params.yaml names its base or aligned model"
        )
    return steadier(compared)


def steadier(compared: Mapping[str, Stability]) -> Finding:
    """Judge "the aligned model is steadier" by the paired comparison of each task."""
    if not compared:
        return Finding(NOT_MEASURED, "no task on which both models get enough right")
    verdicts = [each.verdict for each in compared.values()]
    steady, less = verdicts.count("steadier"), verdicts.count("less steady")
    verdict = NOT_DECIDED
    if steady > 0 and less == 0:
        verdict = SUPPORTED
    elif less > 0 and steady == 0:
        verdict = CONTRADICTED
    measured = (
        f"the aligned model is surely steadier on {steady} of {len(verdicts)} tasks, surely less steady on {less}; "
        f"on {verdicts.count('no power')} the items could not tell"
    )
    only = next(iter(compared.values())) if len(compared) == 1 else None
    mean = float(np.mean([each.difference for each in compared.values()]))
    low, high = (None, None) if only is None else (only.low, only.high)
    return Finding(verdict, measured, mean, low, high, "difference of variation, aligned less unaligned", len(verdicts))


def _wild(evidence: Evidence) -> Finding:
    """Test on the base model that a spread of accuracy above 15 % over decoding strategies marks an unaligned one."""
    aligned = is_aligned(evidence.inputs)
    estimates = [
        evidence.numbers.get(BASE, SPREAD, dataset, ALL_STRATEGIES)
        for dataset in evidence.numbers.datasets(SPREAD, strategy=True)
    ]
    spreads = [spread for spread in estimates if spread and math.isfinite(spread.low)]
    if not spreads:
        return Finding(NOT_MEASURED, "no task with enough right answers was decoded by several strategies")
    above, below = (
        sum(spread.low > published.LIMIT for spread in spreads),
        sum(spread.high <= published.LIMIT for spread in spreads),
    )
    right, wrong = (below, above) if aligned else (above, below)
    verdict = NOT_DECIDED
    if right and not wrong:
        verdict = SUPPORTED
    elif wrong and not right:
        verdict = CONTRADICTED
    worst = max(spreads, key=lambda spread: spread.value)
    called, open_ones = "aligned" if aligned else "unaligned", len(spreads) - above - below
    measured = (
        f"the base model, which is {called}, surely spreads by more than 15 % on {above} of {len(spreads)} tasks, by "
        f"less on {below}; on {open_ones} the items do not tell"
    )
    unit = "largest less smallest accuracy, over the largest, without noise"
    return Finding(verdict, measured, worst.value, worst.low, worst.high, unit, len(spreads))


def _transition(evidence: Evidence) -> Finding:
    """Count the curves that a shape with a knee describes better than every smooth one, once for all corpora."""
    by_curve: dict[tuple[str, str], list[set[str]]] = {}
    for entry in evidence.thresholds:
        if entry.on == BASE and entry.points >= 5:
            answers = {entry.thresholds[name].answer for name in ("knee", "phase_point", "anchored_point")}
            by_curve.setdefault((entry.sweep, entry.identity), []).append(answers)
    if not by_curve:
        return Finding(NOT_MEASURED, "no curve has five points: too few to tell a knee from a smooth curve")
    number = len(by_curve)
    bent = sum(all(LOCATED in answers for answers in curve) for curve in by_curve.values())
    smooth = sum(all(answers == {NO_CLIFF} for answers in curve) for curve in by_curve.values())
    low, high = bootstrap.wilson(bent, number, evidence.spec.confidence)
    verdict = NOT_DECIDED
    if bent >= AGREE * number:
        verdict = SUPPORTED
    elif smooth >= AGREE * number:
        verdict = CONTRADICTED
    measured = (
        f"of {number} curves, {bent} have a knee on every corpus, on {smooth} no corpus shows one, "
        f"of {number - bent - smooth} more points would tell"
    )
    return Finding(verdict, measured, bent / number, low, high, "share of curves with a knee", number)


CLAIMS = (
    Claim("three_bits", "Quantization is safe down to 3 bits and collapses below.", PAPER, "high", _three_bits, True),
    Claim(
        "structured_half", "Structured pruning has collapsed by 50 %.", f"{PAPER}; {REPOSITORY}", "", _structured_half
    ),
    Claim("structured_third", "Structured pruning collapses at 30 to 45 %.", FOLLOW_UP, "", _structured_third),
    Claim("unstructured", "Unstructured pruning is fine up to about 60 %.", f"{PAPER}; {FOLLOW_UP}", "", _unstructured),
    Claim(
        "quantization_first",
        "At equal bytes, quantization does less damage than pruning.",
        PAPER,
        "high",
        _quantized_or_pruned,
        quantized=True,
    ),
    Claim("five_fold", "Quantized to a fifth, a model keeps more than 90 %.", PAPER, "", _five_fold, True),
    Claim(
        "pruning_loses", "At equal bytes, pruning loses 15 to 20 % of the accuracy.", PAPER, "", _pruning_loses, True
    ),
    Claim(
        "structured_worse",
        "At the same share, structured pruning does more damage than unstructured.",
        f"{PAPER}; {REPOSITORY}",
        "medium",
        _structured_or_not,
    ),
    Claim("patterns_worse", "At 50 %, N:M does more damage than unstructured pruning.", REPOSITORY, "", _patterned),
    Claim(
        "calibration_mismatch",
        "Calibration on another domain costs quality.",
        PAPER,
        "",
        _mismatch,
        quantized=True,
    ),
    Claim(
        "calibration_transfer",
        "A calibration set serves its own domain: swapped sets cost quality.",
        PAPER,
        "",
        _transfer,
        quantized=True,
    ),
    Claim(
        "doubled",
        "A perplexity above twice that of the base means too aggressive a compression, or a bad calibration.",
        PAPER,
        "",
        _doubled,
        quantized=True,
    ),
    Claim(
        "one_kind_first",
        "Compress by one kind first, not by two: at equal bytes, one does less damage.",
        PAPER,
        "",
        combinations.one_kind,
        quantized=True,
    ),
    Claim(
        "parts_first",
        "Measure one kind first: a combination does more damage than each of its parts.",
        PAPER,
        "",
        combinations.parts,
        quantized=True,
    ),
    Claim("aligned_steady", "Aligned models are steadier over decoding strategies.", PAPER, "low", _steady),
    Claim("wild_unaligned", "A spread above 15 % over strategies marks an unaligned model.", PAPER, "", _wild),
    Claim(
        "expansion_attention",
        "Expansion disturbs attention more than compression does.",
        PAPER,
        "",
        mapping.attention,
        quantized=True,
    ),
    Claim(
        "compression_cascade",
        "Compression cascades errors more than expansion does.",
        PAPER,
        "",
        mapping.cascade,
        quantized=True,
    ),
    Claim("transition", "Damage has a transition: slow at first, then exponential.", FOLLOW_UP, "", _transition),
)
"""``grade`` is the study's own, where it gives one."""

ONE_MODEL = "one model: says nothing of others (`hemorrhage claims STUDY...` joins studies)"


def judge(evidence: Evidence, claims: Sequence[Claim] = CLAIMS) -> list[Assessment]:
    """Judge every claim, and grade the finding."""
    return [_assess(evidence, claim) for claim in claims]


def _assess(evidence: Evidence, claim: Claim) -> Assessment:
    finding = claim.judge(evidence)
    grade, reason = confidence(evidence, finding, claim.quantized)
    return Assessment(
        key=claim.key,
        claim=claim.claim,
        source=claim.source,
        study_grade=claim.grade or "not graded",
        finding=finding,
        grade=grade,
        grade_reason=reason,
        on_its_source=published.ON_ITS_SOURCE.get(claim.key, published.NOTHING_PRINTED),
        generality=ONE_MODEL,
    )


def as_json(
    assessments: Sequence[Assessment],
    effects: Sequence[mapping.Effect],
    doubled: Sequence[causes.Cause],
    model: Mapping[str, Json],
) -> dict[str, Json]:
    """Return the content of claims.json; ``model``: what a table over studies tells models by."""
    return {
        "model": dict(model),
        "claims": [assessment.as_json() for assessment in assessments],
        "mapping": [effect.as_json() for effect in effects],
        "doubled": [cause.as_json() for cause in doubled],
    }


def model_of(evidence: Evidence, name: str) -> dict[str, Json]:
    """Describe the base model: name, family, parameters, and the text that calibration read."""
    family = evidence.inputs.architecture.get("model_type")
    calibration: list[Json] = list(evidence.spec.calibration)
    parameters = evidence.inputs.base.get("parameters")
    return {"name": name, "family": family, "parameters": parameters, "calibration": calibration}


def confidence(evidence: Evidence, finding: Finding, quantized: bool = False) -> tuple[str, str]:
    """Grade how far a verdict can be trusted: one model never gives more than ``medium``.

    ``quantized``: the claim is about quantization, of which a base that was quantized before says little.
    """
    if finding.verdict == NOT_MEASURED:
        return "none", finding.measured
    windows = evidence.blocks()
    weak = []
    if finding.comparisons < FEW_COMPARISONS:
        weak.append(f"{finding.comparisons} comparison{'' if finding.comparisons == 1 else 's'}")
    if windows < FEW_WINDOWS:
        weak.append(f"{windows} windows of text")
    if len(evidence.corpora) < 2:
        weak.append("one corpus")
    if evidence.numbers.get(BASE, "mean_accuracy", ALL_TASKS) is None:
        weak.append("a base model that does no better than guessing")
    before = evidence.inputs.base.get("quantized_before")
    if quantized and before:
        weak.append(f"a base model that was quantized before ({before['type']})")
    if weak:
        return "low", f"one model; {', '.join(weak)}"
    return "medium", f"one model, {finding.comparisons} comparisons, {len(evidence.corpora)} corpora"
