"""The study's claims, each with what this run measured of it and whether that supports it: claims.json.

A claim is judged by paired differences of log-perplexity ratios (the same resampled windows on both sides), by where
thresholds lie, or by metrics of the base model. A rule never sees how a claim is to come out.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hemorrhage.analyze.axes import failure
from hemorrhage.analyze.curves.entries import LOCATED, NO_CLIFF, CurveEntry
from hemorrhage.analyze.inputs import BASE, SIBLING, Inputs, Variant
from hemorrhage.analyze.rows.decoding import ALL_STRATEGIES
from hemorrhage.analyze.rows.results import Results
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.analyze.stored import Json

SUPPORTED = "supported"
CONTRADICTED = "contradicted"
NOT_DECIDED = "not decided"
NOT_MEASURED = "not measured"

AGREE = 0.8
"""Share of the comparisons that must go the way of their mean: a mean alone may be one comparison's doing."""

NEAR = 0.05
"""A threshold may lie so far from a claimed share."""

FEW_WINDOWS = 30
FEW_COMPARISONS = 3

QUANTIZED = "weight_quantization"
EXPANDED = "depth_expansion"
UNSTRUCTURED = "unstructured_pruning"
STRUCTURED = ("structured_pruning", "depth_pruning", "low_rank")
WITHOUT_RANKS = ("structured_pruning", "depth_pruning")
"""Families that claims are about."""

PAPER = "arXiv 2503.23924"
REPOSITORY = "the authors' repository Model-Hemorrhage"
FOLLOW_UP = "its follow-up, npj Artif. Intell. 2:21 (2026)"


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim and what was measured: ``estimate`` with its interval in ``unit``, of so many
    ``comparisons``."""

    verdict: str
    measured: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    comparisons: int = 0


@dataclass(frozen=True)
class Pair:
    """Two variants to compare on a corpus: damage of ``first`` minus that of ``second``."""

    first: str
    second: str
    corpus: str


@dataclass(frozen=True)
class Evidence:
    """All that was measured."""

    inputs: Inputs
    results: Results
    numbers: Numbers
    thresholds: Sequence[CurveEntry]
    spec: Spec
    corpora: list[str] = field(default_factory=list)

    def variants(self, *families: str) -> list[Variant]:
        """List measured alterations of the base model of these families, without controls."""
        return [
            variant
            for variant in self.inputs.variants.values()
            if variant.family in families
            and variant.on == BASE
            and failure(self.inputs, variant) is None
            and not variant.is_control
            and all((variant.name, corpus) in self.results.replicates for corpus in self.corpora)
        ]

    def damage(self, variant: str, corpus: str) -> float | None:
        """Log-perplexity ratio."""
        ratio = self.numbers.get(variant, "ln_perplexity_ratio", corpus)
        return ratio.value if ratio else None

    def size(self, variant: Variant) -> float:
        """Return the stored bytes over the base's."""
        return float(variant.manifest.get("size_ratio", math.nan))

    def pair(self, pairs: Iterable[tuple[Variant, Variant]]) -> list[Pair]:
        """Repeat the pairs on every corpus on which both have a finite damage."""
        return [
            Pair(first.name, second.name, corpus)
            for first, second in pairs
            for corpus in self.corpora
            if self.damage(first.name, corpus) is not None and self.damage(second.name, corpus) is not None
        ]


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
    """A claim, the study's own grade of it, the finding, and how far that can be trusted."""

    key: str
    claim: str
    source: str
    study_grade: str
    finding: Finding
    grade: str
    grade_reason: str

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
        }


def _verdict(low: float, high: float, agreeing: int, number: int) -> str:
    """Decide by an interval above or below 0, and by the share of ``number`` comparisons that agree."""
    if low > 0 and agreeing >= AGREE * number:
        return SUPPORTED
    if high < 0 and agreeing <= (1 - AGREE) * number:
        return CONTRADICTED
    return NOT_DECIDED


def compare(evidence: Evidence, pairs: Sequence[Pair], what: str) -> Finding:
    """Judge a claim that the first of each pair is damaged more than the second.

    The interval is of the mean over pairs, from the resamples they share; pairs of one corpus are no independent
    evidence, and the interval knows it. At least ``AGREE`` of the pairs must go its way.
    """
    if not pairs:
        return Finding(NOT_MEASURED, f"no {what}")
    differences = [_difference(evidence, pair) for pair in pairs]
    values = np.array([value for value, _ in differences])
    resampled = np.mean([replicates for _, replicates in differences], axis=0)
    blocks = min(evidence.results.blocks[pair.corpus] for pair in pairs)
    mean, (low, high) = float(values.mean()), bootstrap.interval(resampled, evidence.spec.confidence, blocks)
    agreeing = int((values > 0).sum())
    measured = f"{agreeing} of {len(pairs)} comparisons of {what} go this way"
    verdict = _verdict(low, high, agreeing, len(pairs))
    return Finding(verdict, measured, mean, _finite(low), _finite(high), "mean difference of ln PPL", len(pairs))


def _difference(evidence: Evidence, pair: Pair) -> tuple[float, Floats]:
    first, second = (evidence.damage(name, pair.corpus) for name in (pair.first, pair.second))
    assert first is not None
    assert second is not None
    replicates = evidence.results.replicates
    return first - second, replicates[pair.first, pair.corpus] - replicates[pair.second, pair.corpus]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# Thresholds at a share.


def collapses_at(entries: Sequence[CurveEntry], share: float, what: str) -> Finding:
    """Judge a claim that damage collapses (twice the perplexity) at a share, give or take ``NEAR``.

    Every curve must agree; where the curves differ, there is no such share.
    """
    sides = [side for entry in entries if (side := _side(entry, share)) is not None]
    if not sides:
        return Finding(NOT_MEASURED, f"no curve of {what} has two points and reaches that far")
    counted = {side: sides.count(side) for side in WHERE}
    verdict = SUPPORTED if counted["near"] == len(sides) else NOT_DECIDED
    if counted["near"] == 0:
        verdict = CONTRADICTED
    parts = ", ".join(f"{WHERE[side]} on {number}" for side, number in counted.items() if number)
    measured = f"of {len(sides)} curves of {what}, perplexity doubles {parts}"
    doublings = [entry.thresholds["two_fold"] for entry in entries]
    known = [doubling for doubling in doublings if doubling.is_located]
    if not known:
        return Finding(verdict, measured, comparisons=len(sides))
    middle = float(np.median([doubling.estimate for doubling in known]))
    least = min((doubling.low for doubling in known if doubling.low is not None), default=None)
    most = max((doubling.high for doubling in known if doubling.high is not None), default=None)
    return Finding(verdict, measured, middle, least, most, "share, median and range over curves", len(sides))


def _side(entry: CurveEntry, share: float) -> str | None:
    """Say on which side of a share the perplexity of a curve doubles, a key of WHERE; None where nothing tells."""
    low, high = share - NEAR, share + NEAR
    doubling = entry.thresholds["two_fold"]
    if doubling.is_located:
        if doubling.high is not None and doubling.high < low:
            return "before"
        return "after" if doubling.low is not None and doubling.low > high else "near"
    return "after" if doubling.answer == NO_CLIFF and _reaches(entry, high) else None


WHERE = {"before": "before it", "near": "there", "after": "after it or never"}


def _reaches(entry: CurveEntry, share: float) -> bool:
    """Tell whether a curve without a doubling was measured far enough to say that there is none at a share."""
    return max((x for fit in entry.fits.values() for x in fit.x), default=0.0) >= share


def _curves(evidence: Evidence, families: Sequence[str], axis: str, calibrated: bool = False) -> list[CurveEntry]:
    """Select the curves on the base model, without those of sweeps that are controls."""
    variants = evidence.inputs.variants.values()
    controls = {variant.sweep for variant in variants if variant.is_control}
    read = {variant.sweep for variant in variants if variant.manifest.get("calibrated")}
    return [
        entry
        for entry in evidence.thresholds
        if entry.family in families
        and entry.axis == axis
        and entry.on == BASE
        and entry.sweep not in controls
        and (not calibrated or entry.sweep in read)
    ]


def _structured_half(evidence: Evidence) -> Finding:
    return collapses_at(_curves(evidence, WITHOUT_RANKS, "removed"), 0.5, "structured pruning")


def _structured_third(evidence: Evidence) -> Finding:
    return collapses_at(_curves(evidence, WITHOUT_RANKS, "removed"), 0.375, "structured pruning")


def _unstructured(evidence: Evidence) -> Finding:
    return collapses_at(
        _curves(evidence, (UNSTRUCTURED,), "sparsity", calibrated=True),
        0.6,
        "calibrated unstructured pruning",
    )


# Bits.


def _three_bits(evidence: Evidence) -> Finding:
    """At 3 bits perplexity stays below twice the base's, at 2 bits it does not: by the intervals, method by method."""
    variants = evidence.variants(QUANTIZED)
    chosen = {bits: [v for v in variants if v.settings.get("bits") == bits] for bits in (3, 2)}
    if not all(chosen.values()):
        return Finding(NOT_MEASURED, "no quantized variants at both 3 and 2 bits")
    level = math.log(2)
    ratios = {bits: _ratios(evidence, members) for bits, members in chosen.items()}
    number = len(ratios[3]) + len(ratios[2])
    if number == 0:
        return Finding(NOT_MEASURED, "no perplexity of quantized variants")
    safe = [ratio for ratio in ratios[3] if ratio.high < level]
    gone = [ratio for ratio in ratios[2] if ratio.low > level]
    lost = [ratio for ratio in ratios[3] if ratio.low > level]
    measured = (
        f"below twice the perplexity with 3 bits: {len(safe)} of {len(ratios[3])} variants and corpora, "
        f"above it {len(lost)}; above it with 2 bits: {len(gone)} of {len(ratios[2])}"
    )
    verdict = NOT_DECIDED
    if len(safe) == len(ratios[3]) and len(gone) == len(ratios[2]):
        verdict = SUPPORTED
    elif len(lost) == len(ratios[3]) or not any(ratio.high > level for ratio in ratios[2]):
        verdict = CONTRADICTED
    pairs = [(variant.name, corpus) for variant in chosen[3] for corpus in evidence.corpora]
    resampled = np.mean([evidence.results.replicates[pair] for pair in pairs], axis=0)
    blocks = min(evidence.results.blocks.values())
    low, high = bootstrap.interval(resampled, evidence.spec.confidence, blocks)
    mean = float(np.mean([ratio.value for ratio in ratios[3]]))
    return Finding(verdict, measured, mean, _finite(low), _finite(high), "mean ln PPL ratio with 3 bits", number)


def _ratios(evidence: Evidence, variants: Sequence[Variant]) -> list[Estimate]:
    """Look up the log-perplexity ratios of some variants on every corpus."""
    estimates = [
        evidence.numbers.get(variant.name, "ln_perplexity_ratio", corpus)
        for variant in variants
        for corpus in evidence.corpora
    ]
    return [estimate for estimate in estimates if estimate]


def _five_fold(evidence: Evidence) -> Finding:
    """Test that a quantized variant of a fifth of the base's bytes keeps more than 90 % of the accuracy."""
    small = [variant for variant in evidence.variants(QUANTIZED) if evidence.size(variant) <= 0.2]
    known = [evidence.results.task_losses[v.name] for v in small if v.name in evidence.results.task_losses]
    if not known:
        least = min((evidence.size(variant) for variant in evidence.variants(QUANTIZED)), default=math.nan)
        also = "" if math.isnan(least) else f"; the smallest has {100 * least:.0f} %"
        return Finding(NOT_MEASURED, f"no quantized variant of at most 20 % of the base's bytes{also}")
    loss, replicates, blocks = min(known, key=lambda known: known[0])
    low, high = bootstrap.interval(1 - replicates, evidence.spec.confidence, blocks)
    verdict = SUPPORTED if low > 0.9 else CONTRADICTED if high < 0.9 else NOT_DECIDED
    measured = f"the best of {len(known)} such variants keeps {100 * (1 - loss):.0f} % of the accuracy"
    return Finding(verdict, measured, 1 - loss, _finite(low), _finite(high), "share of accuracy kept", len(known))


# Comparisons.


def _quantized_or_pruned(evidence: Evidence) -> Finding:
    """Compare every pruned variant with the quantized one that is nearest below it in bytes."""
    quantized = [variant for variant in evidence.variants(QUANTIZED) if math.isfinite(evidence.size(variant))]
    pairs = []
    for pruned in evidence.variants(UNSTRUCTURED, *STRUCTURED):
        smaller = [variant for variant in quantized if evidence.size(variant) <= evidence.size(pruned)]
        if smaller:
            nearest = max(evidence.size(variant) for variant in smaller)
            pairs += [(pruned, variant) for variant in smaller if evidence.size(variant) == nearest][:1]
    return compare(evidence, evidence.pair(pairs), "a pruned with a quantized variant of no more bytes")


def _structured_or_not(evidence: Evidence) -> Finding:
    """Compare blocks, widths or ranks taken out with the same share of single weights, by method and share."""
    single = [v for v in evidence.variants(UNSTRUCTURED) if ":" not in str(v.settings.get("sparsity"))]
    single = [variant for variant in single if variant.manifest.get("calibrated")]
    pairs = [
        (structured, unstructured)
        for structured in evidence.variants(*STRUCTURED)
        for unstructured in single
        if abs(structured.severity - unstructured.severity) <= NEAR
    ]
    return compare(evidence, evidence.pair(pairs), "structured with unstructured pruning of the same share")


def _patterned(evidence: Evidence) -> Finding:
    """Compare 2:4 or 4:8 with half of the weights wherever they are, by the same method."""
    members = evidence.variants(UNSTRUCTURED)
    pattern = [v for v in members if re.fullmatch(r"(2:4|4:8)", str(v.settings.get("sparsity")))]
    free = [v for v in members if v.settings.get("sparsity") == 0.5]
    pairs = [(bound, loose) for bound in pattern for loose in free if bound.method == loose.method]
    return compare(evidence, evidence.pair(pairs), "N:M with unstructured pruning at 50 %")


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
    blocks = min(evidence.results.blocks[corpus] for corpus in evidence.corpora)
    low, high = bootstrap.interval(resampled, evidence.spec.confidence, blocks)
    worse = int((values > 0).sum())
    measured = (
        f"calibrated on {', '.join(evidence.spec.calibration)}: relative to a data-free method, {worse} of "
        f"{len(values)} calibrated variants are worse on {', '.join(outside)}"
    )
    verdict = _verdict(low, high, worse, len(values))
    unit = "ln of damage off over on the calibration's domain"
    return Finding(verdict, measured, float(values.mean()), _finite(low), _finite(high), unit, len(values))


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
    logs = []
    for corpora in (outside, inside):
        values = [evidence.damage(variant.name, corpus) for corpus in corpora]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        resampled = np.mean([evidence.results.replicates[variant.name, corpus] for corpus in corpora], axis=0)
        mean = float(np.mean(known))
        if mean <= 0 or float(resampled.min()) <= 0:
            return None
        logs.append((math.log(mean), np.log(resampled)))
    return logs[0][0] - logs[1][0], logs[0][1] - logs[1][1]


# Diagnostics, decoding, shapes.


def _attention(evidence: Evidence) -> Finding:
    """Compare how far attention moves, for the same damage, in expanded and in compressed models.

    Each expanded variant against the compressed one with the nearest damage on the corpus that the diagnostics read:
    ln of the Jensen-Shannon divergences of their attention maps, mean over blocks and heads, in each window.
    """
    divergences = {name: _divergences(evidence, name) for name in evidence.inputs.variants}
    maps = {name: by_window for name, by_window in divergences.items() if by_window is not None}
    corpus = evidence.corpora[0] if evidence.corpora else ""
    moved = [v for v in evidence.variants(EXPANDED) if v.name in maps and float(maps[v.name].mean()) > SILENT]
    plain = [v for v in evidence.variants(QUANTIZED, UNSTRUCTURED, *STRUCTURED) if v.name in maps]
    plain = [variant for variant in plain if float(maps[variant.name].mean()) > SILENT]
    if not moved or not plain:
        return Finding(NOT_MEASURED, "no attention maps of an expanded and a compressed model")
    ratios = []
    for variant in moved:
        damage = evidence.damage(variant.name, corpus)
        if damage is None:
            continue
        distances = [abs((evidence.damage(other.name, corpus) or math.inf) - damage) for other in plain]
        nearest = plain[distances.index(min(distances))]
        ratios.append(np.log(maps[variant.name] / maps[nearest.name]))
    if not ratios:
        return Finding(NOT_MEASURED, "no damage of an expanded model")
    by_window = np.mean(ratios, axis=0)
    low, high = bootstrap.t_interval(by_window, evidence.spec.confidence)
    further = sum(float(ratio.mean()) > 0 for ratio in ratios)
    verdict = _verdict(low, high, further, len(ratios))
    measured = (
        f"{further} of {len(ratios)} expanded models move attention further than the compressed model of nearest damage"
    )
    unit = "ln of the divergence of attention over the compressed model's"
    return Finding(verdict, measured, float(by_window.mean()), _finite(low), _finite(high), unit, len(ratios))


SILENT = 1e-6
"""Nats of divergence below which attention did not move: copies that add nothing."""


def _divergences(evidence: Evidence, variant: str) -> Floats | None:
    """Average the divergence of attention from the base's over blocks and heads, in each window."""
    output = evidence.inputs.evaluations.get(variant)
    table = output.tables.get("diagnostics.parquet") if output and output.failure is None else None
    if table is None:
        return None
    chosen = table[(table["metric"] == "attention_js") & (table["window"] >= 0)]
    return chosen.groupby("window")["value"].mean().to_numpy(np.float64) if len(chosen) else None


def _steady(evidence: Evidence) -> Finding:
    """Compare how much accuracy varies over decoding strategies in the aligned and the unaligned model."""
    sibling = evidence.inputs.sibling
    if sibling is None or sibling.decoded.failure is not None:
        return Finding(
            NOT_MEASURED, "one model only; decode.sibling_model of params.yaml names its base or aligned model"
        )
    names = (SIBLING, BASE) if sibling.is_aligned else (BASE, SIBLING)
    pairs = []
    for dataset in evidence.numbers.datasets("spread_cv", strategy=True):
        aligned, plain = (evidence.numbers.get(name, "spread_cv", dataset, ALL_STRATEGIES) for name in names)
        if aligned is not None and plain is not None:
            pairs.append((aligned, plain))
    if not pairs:
        return Finding(NOT_MEASURED, "no task on which both models get enough right")
    values = np.array([aligned.value - plain.value for aligned, plain in pairs])
    steadier = sum(aligned.high < plain.low for aligned, plain in pairs)
    wilder = sum(aligned.low > plain.high for aligned, plain in pairs)
    verdict = NOT_DECIDED
    if steadier > 0 and wilder == 0:
        verdict = SUPPORTED
    elif wilder > 0 and steadier == 0:
        verdict = CONTRADICTED
    measured = (
        f"the aligned model is surely steadier on {steadier} of {len(pairs)} tasks, surely less steady on {wilder}"
    )
    return Finding(verdict, measured, float(values.mean()), None, None, "difference of variation", len(pairs))


def _wild(evidence: Evidence) -> Finding:
    """Test on the base model that a spread of accuracy above 15 % over decoding strategies marks an unaligned one."""
    aligned = bool(re.search(r"instruct|chat|-it\b", str(evidence.inputs.base.get("model", {})), re.IGNORECASE))
    estimates = [
        evidence.numbers.get(BASE, "spread_over_max", dataset, ALL_STRATEGIES)
        for dataset in evidence.numbers.datasets("spread_over_max", strategy=True)
    ]
    spreads = [spread for spread in estimates if spread and math.isfinite(spread.low)]
    if not spreads:
        return Finding(NOT_MEASURED, "no task with enough right answers was decoded by several strategies")
    above, below = sum(spread.low > 0.15 for spread in spreads), sum(spread.high < 0.15 for spread in spreads)
    right, wrong = (below, above) if aligned else (above, below)
    verdict = NOT_DECIDED
    if right == len(spreads):
        verdict = SUPPORTED
    elif wrong and not right:
        verdict = CONTRADICTED
    worst = max(spreads, key=lambda spread: spread.value)
    called = "aligned" if aligned else "unaligned"
    measured = f"the base model, {called} by its name, spreads by more than 15 % on {above} of {len(spreads)} tasks"
    unit = "largest less smallest accuracy, over the largest"
    return Finding(verdict, measured, worst.value, worst.low, worst.high, unit, len(spreads))


def _transition(evidence: Evidence) -> Finding:
    """Count the curves that a shape with a knee describes better than every smooth one."""
    answers = [
        {entry.thresholds[name].answer for name in ("knee", "phase_point", "anchored_point")}
        for entry in evidence.thresholds
        if entry.on == BASE and entry.points >= 5
    ]
    if not answers:
        return Finding(NOT_MEASURED, "no curve has five points: too few to tell a knee from a smooth curve")
    bent = sum(LOCATED in each for each in answers)
    smooth = sum(each == {NO_CLIFF} for each in answers)
    low, high = bootstrap.wilson(bent, len(answers), evidence.spec.confidence)
    verdict = NOT_DECIDED
    if bent >= AGREE * len(answers):
        verdict = SUPPORTED
    elif smooth >= AGREE * len(answers):
        verdict = CONTRADICTED
    measured = (
        f"of {len(answers)} curves, {bent} have a knee, {smooth} are smooth, {len(answers) - bent - smooth} could be"
    )
    return Finding(verdict, measured, bent / len(answers), low, high, "share of curves with a knee", len(answers))


CLAIMS = (
    Claim("three_bits", "Quantization is safe down to 3 bits and collapses below.", PAPER, "high", _three_bits, True),
    Claim(
        "structured_half", "Structured pruning collapses at about 50 %.", f"{PAPER}; {REPOSITORY}", "", _structured_half
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
    Claim("aligned_steady", "Aligned models are steadier over decoding strategies.", PAPER, "low", _steady),
    Claim("wild_unaligned", "A spread above 15 % over strategies marks an unaligned model.", PAPER, "", _wild),
    Claim(
        "expansion_attention",
        "Expansion disturbs attention, where compression loses information.",
        PAPER,
        "",
        _attention,
        quantized=True,
    ),
    Claim("transition", "Damage has a transition: slow at first, then exponential.", FOLLOW_UP, "", _transition),
)
"""``grade`` is the study's own, where it gives one."""


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
    )


def as_json(assessments: Sequence[Assessment]) -> dict[str, Json]:
    """Return the content of claims.json."""
    return {"claims": [assessment.as_json() for assessment in assessments]}


def confidence(evidence: Evidence, finding: Finding, quantized: bool = False) -> tuple[str, str]:
    """Grade how far a verdict can be trusted: one model never gives more than ``medium``.

    ``quantized``: the claim is about quantization, of which a base that was quantized before says little.
    """
    if finding.verdict == NOT_MEASURED:
        return "none", finding.measured
    windows = min(evidence.results.blocks.values(), default=0)
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
