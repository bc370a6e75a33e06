"""What would help: mitigations, each against the plain method and against a control.

Recovery is R = (d_plain - d_mitigated) / d_plain, where the damage d is the log-perplexity ratio, the mean KL or the
share of flips: 1 where the mitigation undoes all damage, 0 where it does nothing, below 0 where it harms. Plain method,
mitigation and control are resampled together, with the draws that every other interval rests on. The control does the
same work with shuffled information; what it recovers, the information did not.

A mitigation is found among the variants: its method says what it improves on, and with which settings in common.
Corrections of decoding (hemorrhage.mitigate) bring their plain side and their control along.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.protocol import add_protocol
from hemorrhage.analyze.rows.schema import environment_id, row
from hemorrhage.analyze.rows.tasks import Suite
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.compress.info import ARMS, Comparison

EQUAL_BYTES = 0.02
"""Relative difference of stored bits per weight below which two variants count as equally large."""


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
        """The mean over tokens of sums per block."""
        return cls(float(sums.sum() / sizes.sum()), bootstrap.means(counts, sums, sizes), len(sums))


@dataclass(frozen=True)
class Measured:
    """One damage metric on one data set, of the plain method, with the mitigation and with the control.

    ``about``: data set, protocol, data and environment of the rows.
    """

    metric: str
    about: dict[str, str]
    plain: Damage
    treated: Damage
    control: Damage | None


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
    recovered and what its control recovered (None: there was nothing to recover), and the verdict."""

    metric: str
    dataset: str
    plain: float
    treated: float
    recovery: Recovery | None
    has_control: bool
    control: Recovery | None
    verdict: str


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
    """A trial without its resamples."""
    outcomes = [_outcome(one, spec.confidence) for one in trial.measured]
    return TrialSummary(trial.arm, trial.treatment, trial.plain, trial.treated, trial.control, outcomes, trial.missing)


def _outcome(one: Measured, confidence: float) -> Outcome:
    return Outcome(
        metric=one.metric,
        dataset=one.about["dataset"],
        plain=one.plain.estimate,
        treated=one.treated.estimate,
        recovery=recovery(one.plain, one.treated, confidence),
        has_control=one.control is not None,
        control=None if one.control is None else recovery(one.plain, one.control, confidence),
        verdict=verdict(one, confidence),
    )


def recovery(plain: Damage, treated: Damage, confidence: float) -> Recovery | None:
    """R of ``treated``, or None where ``plain`` can't be told from no damage: there is nothing to recover then."""
    low, _ = bootstrap.interval(plain.replicates, confidence, plain.blocks)
    if not low > 0:
        return None
    return _ratio(plain.estimate - treated.estimate, plain.replicates - treated.replicates, plain, confidence)


def beyond_control(measured: Measured, confidence: float) -> Recovery | None:
    """R of the mitigation minus R of its control, paired; None without a control or with nothing to recover."""
    plain, treated, control = measured.plain, measured.treated, measured.control
    if control is None or recovery(plain, treated, confidence) is None:
        return None
    return _ratio(control.estimate - treated.estimate, control.replicates - treated.replicates, plain, confidence)


def _ratio(gain: float, gains: Floats, plain: Damage, confidence: float) -> Recovery:
    # A resample without damage says nothing of a share of it.
    there = plain.replicates > 0
    low, high = bootstrap.interval(gains[there] / plain.replicates[there], confidence, plain.blocks)
    return Recovery(gain / plain.estimate, low, high)


def verdict(measured: Measured, confidence: float) -> str:
    """``recovers``, ``no better than its control``, ``nothing``, ``harms``, or that there is nothing to recover."""
    found = recovery(measured.plain, measured.treated, confidence)
    if found is None:
        return "no damage to recover"
    if found.high < 0:
        return "harms"
    if not found.low > 0:
        return "nothing"
    gap = beyond_control(measured, confidence)
    return "no better than its control" if gap is not None and not gap.low > 0 else "recovers"


# Trials among the variants.


def trials(inputs: Inputs, evaluations: Mapping[str, Output], suites: Sequence[Suite], spec: Spec) -> list[Trial]:
    """Every mitigation of the run, in the order of the rules and of params.yaml."""
    return [
        _trial(arm, treated, plain, _control(treated, inputs), evaluations, suites, spec)
        for arm, treated, plain in _pairs(inputs)
    ]


def _pairs(inputs: Inputs) -> Iterator[tuple[str, Variant, Variant]]:
    """Arm, mitigation and plain variant, arm by arm."""
    variants = [variant for variant in inputs.variants.values() if variant.name != BASE]
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


def _fits(variant: Variant, wanted: Mapping[str, Sequence[Any]]) -> bool:
    """Whether the settings have wanted values; a setting that the method has not excludes nothing."""
    return all(variant.settings[name] in values for name, values in wanted.items() if name in variant.settings)


def _comparable(comparison: Comparison, treated: Variant, plain: Variant) -> bool:
    ours, theirs = treated.settings, plain.settings
    if not ours or not theirs:
        return False
    if plain.name == treated.name or plain.on != treated.on or plain.is_shuffled:
        return False
    if not _fits(plain, comparison.untreated) or any(ours[key] == theirs[key] for key in comparison.changed):
        return False
    if any(ours.get(key) != theirs.get(key) for key in comparison.same):
        return False
    if not comparison.equal_bytes:
        return True
    sizes = [variant.manifest.get("layer_bits", math.nan) for variant in (treated, plain)]
    return abs(sizes[0] - sizes[1]) < EQUAL_BYTES * sizes[1]


def _control(treated: Variant, inputs: Inputs) -> Variant | None:
    """The control: the same but for ``shuffled``, with the same seed if there is such a one."""
    wanted = {**treated.settings, "shuffled": True}
    found = [
        variant
        for variant in inputs.variants.values()
        if variant.method == treated.method and variant.on == treated.on and variant.settings == wanted
    ]
    return min(found, key=lambda variant: variant.seed != treated.seed) if found else None


def _trial(
    arm: str,
    treated: Variant,
    plain: Variant,
    control: Variant | None,
    evaluations: Mapping[str, Output],
    suites: Sequence[Suite],
    spec: Spec,
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
    return Trial(arm, treated.name, f"plain={plain.name}", plain, treated, control, measured, missing)


def _failure(variant: Variant, evaluations: Mapping[str, Output]) -> str | None:
    """Why there is no damage of a variant."""
    if variant.failure is not None or variant.name in evaluations:
        return variant.failure or evaluations[variant.name].failure
    return "not evaluated"


def _language(outputs: Sequence[Output], spec: Spec) -> Iterator[Measured]:
    """The language metrics of a plain variant, its mitigation and perhaps a control, on every corpus."""
    for corpus, facts in outputs[0].manifest.get("corpora", {}).items():
        tables = [output.tables["tokens.parquet"] for output in outputs]
        tables = [table[table["corpus"] == corpus] for table in tables]
        about = _about(corpus, facts, outputs[1])
        _, block = np.unique(tables[0]["window"].to_numpy(), return_inverse=True)
        sizes = np.bincount(block).astype(np.int64)
        counts = bootstrap.draws(corpus, len(sizes), spec.resamples, spec.seed)
        for metric, values in (
            ("kl_mean", [table["kl"].to_numpy(np.float64) for table in tables]),
            ("ln_perplexity_ratio", [(table["nll"].astype(float) - table["base_nll"]).to_numpy() for table in tables]),
        ):
            yield measured(
                metric, about, [np.bincount(block, weights=one).astype(np.float64) for one in values], sizes, counts
            )


def measured(
    metric: str, about: dict[str, str], sums: Sequence[Floats], sizes: bootstrap.Integers, counts: bootstrap.Integers
) -> Measured:
    """Sums per block of the plain side, the mitigation and perhaps the control, of which the mean is the damage."""
    plain, treated, *control = (Damage.of_sums(one, sizes, counts) for one in sums)
    return Measured(metric, about, plain, treated, control[0] if control else None)


def _about(dataset: str, facts: Mapping[str, Any], output: Output) -> dict[str, str]:
    return {
        "dataset": dataset,
        "protocol": facts["protocol"],
        "data": facts["sha256"],
        "environment": environment_id(output.manifest),
    }


def _flips(suite: Suite, names: Sequence[str], spec: Spec) -> Iterator[Measured]:
    """Flips, averaged over the suite's tasks that are not at chance."""
    outputs = [suite.outputs.get(name) for name in names]
    if not suite.averaged_tasks or any(output is None or "items.parquet" not in output.tables for output in outputs):
        return
    damages = [_flipped(output, suite, spec) for output in outputs if output is not None]
    facts = {"protocol": f"mean of {', '.join(suite.averaged_tasks)}", "sha256": ""}
    treated = outputs[1]
    assert treated is not None
    about = _about(suite.name, facts, treated)
    yield Measured("flips", about, damages[0], damages[1], damages[2] if len(damages) > 2 else None)


def _flipped(output: Output, suite: Suite, spec: Spec) -> Damage:
    items = output.tables["items.parquet"]
    estimates, replicates, blocks = [], [], 0
    for task in suite.averaged_tasks:
        part = items[items["task"] == task]
        flipped = (part["correct"] != part["base_correct"]).astype(float).groupby(part["group"]).agg(["sum", "size"])
        sums, sizes = flipped["sum"].to_numpy(np.float64), flipped["size"].to_numpy(np.int64)
        counts = bootstrap.draws(task, len(sizes), spec.resamples, spec.seed)
        estimates.append(sums.sum() / sizes.sum())
        replicates.append(bootstrap.means(counts, sums, sizes))
        blocks += len(sizes)
    return Damage(float(np.mean(estimates)), np.mean(replicates, axis=0), blocks)


# Rows.


def trial_rows(found: Sequence[Trial], spec: Spec) -> Iterator[dict[str, Any]]:
    """Rows of the mitigations: ``recovery{of=kl_mean,plain=wanda-0.5}``, a control's under the variant that it is.

    ``recovery_beyond_control``: the difference of both.
    """
    seen = set()
    for trial in found:
        for one in trial.measured:
            treated, control = trial.treated, trial.control
            yield _row(treated, "recovery", one, trial.label, recovery(one.plain, one.treated, spec.confidence))
            if one.control is not None and control is not None:
                label = trial.control_label or trial.label
                # Mitigations that differ by their seed alone may share a control.
                if (control.name, label, one.metric, one.about["dataset"]) not in seen:
                    yield _row(control, "recovery", one, label, recovery(one.plain, one.control, spec.confidence))
                seen.add((control.name, label, one.metric, one.about["dataset"]))
                gap = beyond_control(one, spec.confidence)
                yield _row(treated, "recovery_beyond_control", one, trial.label, gap)


def _row(variant: Variant, metric: str, one: Measured, label: str, found: Recovery | None) -> dict[str, Any]:
    name = f"{metric}{{of={one.metric},{label}}}"
    if "window=" in one.about["protocol"]:
        name = add_protocol(name, one.about["protocol"])
    if found is None:
        reason = "the plain method does no damage that can be told from none"
        return row(variant, name, n=one.plain.blocks, status="undefined", reason=reason, **one.about)
    fields = {"estimate": found.value, "low": found.low, "high": found.high, "n": one.plain.blocks}
    return row(variant, name, **fields, **one.about)
