"""What would help: mitigations, each against the plain method and against a control.

Recovery is R = (d_plain - d_mitigated) / d_plain, where the damage d is the log-perplexity ratio, the mean KL or the
share of flips: 1 where the mitigation undoes all damage, 0 where it does nothing, below 0 where it harms. Plain method,
mitigation and control are resampled together, with the draws that every other interval rests on. A comparison is one
of methods, and a calibrated variant is one calibration draw of its method: every side's resamples hold what other
draws would change (``draws``), and a variant that alters the plain one further moves with it. The control does the same
work with shuffled information; what it recovers, the information did not. A control that is not equivalent to the
plain method (NEUTRAL) adds a damage or a benefit of its own: the mitigation is then not compared with it.

``Spec.smallest_effect`` is the smallest recovery that matters. A mitigation whose whole interval lies below it is not
worth it, however sure its effect is; where the interval holds both it and 0, the study is too small to tell.

A mitigation is one of the variants: its method says what it improves on, and with which settings in common.
Corrections of decoding (hemorrhage.mitigate) bring their plain side and their control along.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from scipy import stats

from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.protocol import add_protocol
from hemorrhage.analyze.rows.draws import Draws
from hemorrhage.analyze.rows.schema import Row, Source, Statistic, environment_id, row
from hemorrhage.analyze.rows.tasks import ITEMS, Suite
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.analyze.stats.bounds import POWER
from hemorrhage.compress.info import ARMS, Comparison

EQUAL_BYTES = 0.02
"""Relative difference of stored bits per weight below which two variants count as equally large."""

NEUTRAL = 0.2
"""A control is neutral where its recovery lies within this share of the plain method's damage, by two one-sided tests
(Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 1987 15:657)."""


NO_DAMAGE = "no damage to recover"
HARMS = "harms"
NOT_WORTH_IT = "not worth it"
CANNOT_TELL = "cannot tell at this size"
AS_ITS_CONTROL = "no better than its control"
LIKE_ITS_CONTROL = "cannot tell from its control at this size"
RECOVERS = "recovers"
PERHAPS_TOO_LITTLE = "recovers, perhaps too little"
NOT_COMPARED = ", not compared with its control"
"""Behind RECOVERS and PERHAPS_TOO_LITTLE, where the control is not neutral."""


class Recovery(NamedTuple):
    """A recovery with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Damage:
    """A damage, and the same in each resample of ``blocks`` blocks: float64 ``[resamples]``."""

    estimate: float
    replicates: Floats
    blocks: int

    @classmethod
    def of_sums(cls, sums: Floats, sizes: bootstrap.Integers, counts: bootstrap.Integers) -> Damage:
        """Return the mean over tokens of sums per block."""
        return cls(float(sums.sum() / sizes.sum()), bootstrap.means(counts, sums, sizes), len(sums))

    def moved(self, factors: Floats) -> Damage:
        """Return the same with so many times the damage in each resample."""
        return replace(self, replicates=self.replicates * factors)


@dataclass(frozen=True)
class Measured:
    """One damage metric on one data set, of the plain method, with the mitigation and with the control.

    ``of_text``: the same without what other calibration draws would change; None where that is nothing.
    """

    metric: str
    source: Source
    plain: Damage
    treated: Damage
    control: Damage | None
    of_text: Measured | None = None


@dataclass(frozen=True)
class Trial:
    """A mitigation that was tried: ``treatment``, compared with the variant ``plain``.

    ``treated`` and ``control``: the variants that the rows of the mitigation and of its control belong to. ``label``
    distinguishes the rows of this trial from others of the same variant. ``missing``: why there is nothing to compare.
    """

    arm: str
    treatment: str
    label: str
    plain: Variant
    treated: Variant
    control: Variant | None
    measured: list[Measured] = field(repr=False)
    missing: str = ""
    control_label: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a trial on one metric and data set, resamples summed up: ``plain`` and ``treated`` damage, what was
    recovered and what its control recovered (None: there was nothing to recover), the verdict, and ``not_neutral``: why
    the mitigation is not compared with its control, empty where it is. ``blocks``: windows or items that it rests on,
    ``needed``: how many an effect of the smallest size takes to be seen, 0 where there is nothing to recover, and where
    calibration draws alone hide such an effect."""

    metric: str
    dataset: str
    plain: float
    treated: float
    recovery: Recovery | None
    has_control: bool
    control: Recovery | None
    verdict: str
    not_neutral: str = ""
    blocks: int = 0
    needed: int = 0


@dataclass(frozen=True)
class TrialSummary:
    """A trial as people read it: fields as those of Trial."""

    arm: str
    treatment: str
    plain: Variant
    treated: Variant
    control: Variant | None
    outcomes: list[Outcome]
    missing: str


def summarize(trial: Trial, spec: Spec) -> TrialSummary:
    """Return a trial without its resamples."""
    outcomes = [_outcome(measured, spec) for measured in trial.measured]
    return TrialSummary(trial.arm, trial.treatment, trial.plain, trial.treated, trial.control, outcomes, trial.missing)


def _outcome(measured: Measured, spec: Spec) -> Outcome:
    plain, control, confidence = measured.plain, measured.control, spec.confidence
    return Outcome(
        metric=measured.metric,
        dataset=measured.source.dataset,
        plain=plain.estimate,
        treated=measured.treated.estimate,
        recovery=recovery(plain, measured.treated, confidence),
        has_control=control is not None,
        control=None if control is None else recovery(plain, control, confidence),
        verdict=verdict(measured, confidence, spec.smallest_effect),
        not_neutral=not_neutral(measured, confidence),
        blocks=plain.blocks,
        needed=blocks_needed(measured, confidence, spec.smallest_effect),
    )


def recovery(plain: Damage, treated: Damage, confidence: float) -> Recovery | None:
    """R of ``treated``, or None where the damage of ``plain`` is not significant: there is nothing to recover then."""
    low, _ = bootstrap.interval(plain.replicates, confidence, plain.blocks)
    if not low > 0:
        return None
    return _ratio(plain.estimate - treated.estimate, plain.replicates - treated.replicates, plain, confidence)


def not_neutral(measured: Measured, confidence: float) -> str:
    """Say why the control is not known to be equivalent to the plain method; empty where it is, or nothing is to say.

    Equivalence takes two one-sided tests at 1 - confidence: the interval of 2 confidence - 1 lies within NEUTRAL.
    """
    plain, control = measured.plain, measured.control
    if control is None or recovery(plain, control, confidence) is None:
        return ""
    value, low, high = _ratio(
        plain.estimate - control.estimate, plain.replicates - control.replicates, plain, 2 * confidence - 1
    )
    if low > -NEUTRAL and high < NEUTRAL:
        return ""
    outside = high <= -NEUTRAL or low >= NEUTRAL
    what = "is not neutral" if outside else "is not known to be neutral"
    seen = f"it recovers {100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
    return f"the control {what}: {seen}, where a neutral one stays within {100 * NEUTRAL:.0f} % of 0"


def beyond_control(measured: Measured, confidence: float) -> Recovery | None:
    """R of the mitigation minus R of its control, paired; None without a neutral control or with nothing to recover."""
    return None if not_neutral(measured, confidence) else _gap(measured, confidence)


def _gap(measured: Measured, confidence: float) -> Recovery | None:
    plain, treated, control = measured.plain, measured.treated, measured.control
    if control is None or recovery(plain, treated, confidence) is None:
        return None
    return _ratio(control.estimate - treated.estimate, control.replicates - treated.replicates, plain, confidence)


def _ratio(gain: float, gains: Floats, plain: Damage, confidence: float) -> Recovery:
    # A resample without damage says nothing of a share of it.
    damaged = plain.replicates > 0
    low, high = bootstrap.interval(gains[damaged] / plain.replicates[damaged], confidence, plain.blocks)
    return Recovery(gain / plain.estimate, low, high)


def verdict(measured: Measured, confidence: float, smallest: float) -> str:
    """Judge a mitigation: one of the constants above, RECOVERS with and without NOT_COMPARED."""
    recovered = recovery(measured.plain, measured.treated, confidence)
    if recovered is None:
        return NO_DAMAGE
    if recovered.high < 0:
        return HARMS
    if recovered.high < smallest:
        return NOT_WORTH_IT
    if not recovered.low > 0:
        return CANNOT_TELL
    gap = _gap(measured, confidence)
    if gap is not None and not gap.low > 0:
        return AS_ITS_CONTROL if gap.high < smallest else LIKE_ITS_CONTROL
    verdict = RECOVERS if recovered.low >= smallest else PERHAPS_TOO_LITTLE
    return verdict + NOT_COMPARED if not_neutral(measured, confidence) else verdict


def blocks_needed(measured: Measured, confidence: float, smallest: float) -> int:
    """Return the blocks at which a recovery of ``smallest`` is told from none with a probability of POWER.

    The part of the interval's width that the text makes shrinks with the root of their number, that of calibration
    draws stays. 0 where there is nothing to recover, and where the draws alone hide such an effect.
    """
    blocks = measured.plain.blocks
    variances = []
    for each in (measured, measured.of_text or measured):
        recovered = recovery(each.plain, each.treated, confidence)
        if recovered is None or blocks < 2:
            return 0
        two_sided = (1 + confidence) / 2
        variances.append(((recovered.high - recovered.low) / 2 / float(stats.t.ppf(two_sided, blocks - 1))) ** 2)
    whole, of_text = variances
    wanted = (smallest / float(stats.norm.ppf(two_sided) + stats.norm.ppf(POWER))) ** 2
    room = wanted - max(whole - of_text, 0.0)
    return math.ceil(blocks * of_text / room) if room > 0 else 0


# Trials among the variants.


def trials(
    inputs: Inputs, evaluations: Mapping[str, Output], suites: Sequence[Suite], spec: Spec, draws: Draws
) -> list[Trial]:
    """Compare every mitigation of the run, in the order of the arms and of params.yaml."""
    return [
        _trial(arm, treated, plain, _control(treated, inputs), evaluations, suites, spec, draws)
        for arm, treated, plain in _pairs(inputs)
    ]


def _pairs(inputs: Inputs) -> Iterator[tuple[str, Variant, Variant]]:
    """Arm, mitigation and plain variant, arm by arm."""
    variants = [variant for variant in inputs.variants.values() if variant.name != BASE and not variant.is_redrawn]
    for arm in ARMS:
        for treated in variants:
            for comparison in treated.info.improves_on:
                if comparison.arm != arm or treated.is_shuffled or not _fits(treated, comparison.treated):
                    continue
                if not comparison.plain:
                    yield arm, treated, inputs.variants[treated.on]
                    continue
                for plain in variants:
                    if plain.method == comparison.plain and _comparable(comparison, treated, plain):
                        yield arm, treated, plain


def _fits(variant: Variant, wanted: Mapping[str, Sequence[object]]) -> bool:
    """Whether the settings have wanted values; a setting that the method has not excludes nothing."""
    return all(variant.settings[name] in values for name, values in wanted.items() if name in variant.settings)


def _comparable(comparison: Comparison, treated: Variant, plain: Variant) -> bool:
    """Whether a variant is the plain side of a comparison of ``treated``."""
    if plain.name == treated.name or plain.on != treated.on or plain.is_shuffled:
        return False
    return _settings_compare(comparison, treated, plain) and (
        not comparison.equal_bytes or _equal_bytes(treated, plain)
    )


def _settings_compare(comparison: Comparison, treated: Variant, plain: Variant) -> bool:
    ours, theirs = treated.settings, plain.settings
    if not ours or not theirs or not _fits(plain, comparison.untreated):
        return False
    differ = all(ours[key] != theirs[key] for key in comparison.changed)
    return differ and all(ours.get(key) == theirs.get(key) for key in comparison.same)


def _equal_bytes(treated: Variant, plain: Variant) -> bool:
    ours, theirs = (variant.manifest.get("layer_bits", math.nan) for variant in (treated, plain))
    return abs(ours - theirs) < EQUAL_BYTES * theirs


def _control(treated: Variant, inputs: Inputs) -> Variant | None:
    """Find the control: the same but for ``shuffled``, with the same seed if one has it."""
    wanted = {**treated.settings, "shuffled": True}
    controls = [
        variant
        for variant in inputs.variants.values()
        if variant.method == treated.method and variant.on == treated.on and variant.settings == wanted
    ]
    return min(controls, key=lambda variant: variant.seed != treated.seed, default=None)


def _trial(
    arm: str,
    treated: Variant,
    plain: Variant,
    control: Variant | None,
    evaluations: Mapping[str, Output],
    suites: Sequence[Suite],
    spec: Spec,
    draws: Draws,
) -> Trial:
    compared = [plain, treated, *([control] if control else [])]
    failures = {variant.name: _failure(variant, evaluations) for variant in compared}
    missing = "; ".join(f"{name}: {reason}" for name, reason in failures.items() if reason)
    measured: list[Measured] = []
    if not missing:
        outputs = [evaluations[variant.name] for variant in compared]
        measured += _language(outputs, spec)
        for suite in suites:
            measured += _flips(suite, [variant.name for variant in compared], spec)
        factors = _factors(compared, draws, spec)
        measured = [_with_draws(each, factors) for each in measured]
    return Trial(arm, treated.name, f"plain={plain.name}", plain, treated, control, measured, missing)


def _factors(compared: Sequence[Variant], draws: Draws, spec: Spec) -> list[Floats]:
    """Return what other draws would make of each variant's damage; what alters the first further moves with it."""
    own = [draws.factors(variant, spec.resamples, spec.seed) for variant in compared]
    plain = compared[0]
    return [factor * own[0] if each.on == plain.name else factor for each, factor in zip(compared, own, strict=True)]


def _with_draws(measured: Measured, factors: Sequence[Floats]) -> Measured:
    """Return a comparison whose resamples hold what other calibration draws would change."""
    if all(bool((factor == 1).all()) for factor in factors):
        return measured
    sides = [each for each in (measured.plain, measured.treated, measured.control) if each is not None]
    plain, treated, *control = (side.moved(factor) for side, factor in zip(sides, factors, strict=True))
    return Measured(measured.metric, measured.source, plain, treated, control[0] if control else None, measured)


def _failure(variant: Variant, evaluations: Mapping[str, Output]) -> str | None:
    """Why there is no damage of a variant."""
    if variant.failure is not None or variant.name in evaluations:
        return variant.failure or evaluations[variant.name].failure
    return "not evaluated"


def _language(outputs: Sequence[Output], spec: Spec) -> Iterator[Measured]:
    """Measure a plain variant, its mitigation and perhaps a control by the language metrics, on every corpus."""
    for corpus, stated in outputs[0].manifest.get("corpora", {}).items():
        tables = [output.tables["tokens.parquet"] for output in outputs]
        tables = [table[table["corpus"] == corpus] for table in tables]
        source = Source(corpus, stated["protocol"], stated["sha256"], environment_id(outputs[1].manifest))
        _, block = np.unique(tables[0]["window"].to_numpy(), return_inverse=True)
        sizes = np.bincount(block).astype(np.int64)
        counts = bootstrap.draws(corpus, len(sizes), spec.resamples, spec.seed)
        for metric, values in (
            ("kl_mean", [table["kl"].to_numpy(np.float64) for table in tables]),
            ("ln_perplexity_ratio", [(table["nll"].astype(float) - table["base_nll"]).to_numpy() for table in tables]),
        ):
            sums = [np.bincount(block, weights=tokens).astype(np.float64) for tokens in values]
            yield compare_sums(metric, source, sums, sizes, counts)


def compare_sums(
    metric: str, source: Source, sums: Sequence[Floats], sizes: bootstrap.Integers, counts: bootstrap.Integers
) -> Measured:
    """Compare sums per block of the plain side, the mitigation and perhaps the control; the damage is their mean."""
    plain, treated, *control = (Damage.of_sums(side, sizes, counts) for side in sums)
    return Measured(metric, source, plain, treated, control[0] if control else None)


def _flips(suite: Suite, names: Sequence[str], spec: Spec) -> Iterator[Measured]:
    """Flips, averaged over the suite's tasks that are not at chance."""
    outputs = [output for output in map(suite.outputs.get, names) if output is not None and ITEMS in output.tables]
    if not suite.averaged_tasks or len(outputs) < len(names):
        return
    plain, treated, *control = (_flipped(output, suite, spec) for output in outputs)
    source = Source(
        dataset=suite.name,
        protocol=f"mean of {', '.join(suite.averaged_tasks)}",
        environment=environment_id(outputs[1].manifest),
    )
    yield Measured("flips", source, plain, treated, control[0] if control else None)


def _flipped(output: Output, suite: Suite, spec: Spec) -> Damage:
    items = output.tables[ITEMS]
    estimates, replicates, blocks = [], [], 0
    for task in suite.averaged_tasks:
        answers = items[items["task"] == task]
        flips = (answers["correct"] != answers["base_correct"]).astype(float)
        flipped = flips.groupby(answers["group"]).agg(["sum", "size"])
        sums, sizes = flipped["sum"].to_numpy(np.float64), flipped["size"].to_numpy(np.int64)
        counts = bootstrap.draws(task, len(sizes), spec.resamples, spec.seed)
        estimates.append(sums.sum() / sizes.sum())
        replicates.append(bootstrap.means(counts, sums, sizes))
        blocks += len(sizes)
    return Damage(float(np.mean(estimates)), np.mean(replicates, axis=0), blocks)


# Rows.


def trial_rows(trials: Sequence[Trial], spec: Spec) -> Iterator[Row]:
    """Rows of the mitigations: ``recovery{of=kl_mean,plain=wanda-0.5}``, a control's under the variant that it is.

    ``recovery_beyond_control``: the difference of both.
    """
    seen = set()
    for trial in trials:
        for measured in trial.measured:
            plain, confidence = measured.plain, spec.confidence
            recovered = recovery(plain, measured.treated, confidence)
            yield _row(trial.treated, "recovery", measured, trial.label, recovered)
            if measured.control is not None and trial.control is not None:
                label = trial.control_label or trial.label
                # Mitigations that differ by their seed alone may share a control.
                key = (trial.control.name, label, measured.metric, measured.source.dataset)
                if key not in seen:
                    by_control = recovery(plain, measured.control, confidence)
                    yield _row(trial.control, "recovery", measured, label, by_control)
                seen.add(key)
                gap, why = beyond_control(measured, confidence), not_neutral(measured, confidence)
                yield _row(trial.treated, "recovery_beyond_control", measured, trial.label, gap, why)


def _row(
    variant: Variant, metric: str, measured: Measured, label: str, recovered: Recovery | None, why: str = ""
) -> Row:
    name, blocks = f"{metric}{{of={measured.metric},{label}}}", measured.plain.blocks
    if "window=" in measured.source.protocol:
        name = add_protocol(name, measured.source.protocol)
    statistic = Statistic.undefined(why or "the plain method does no significant damage", blocks)
    if recovered is not None:
        statistic = Statistic(recovered.value, recovered.low, recovered.high, blocks)
    return row(variant, name, statistic, measured.source)
