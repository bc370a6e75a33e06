"""How far the numbers transfer: to other text than was calibrated on, and to other calibration draws."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hemorrhage.analyze.inputs import BASE, Variant
from hemorrhage.analyze.rows import draws
from hemorrhage.analyze.rows.language import ROUNDING
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.study import Study

FILES = (
    "A verdict on the budget is one of the very file that was measured, and holds the variance of the text alone: "
    "the same method with another draw makes another file, which has to be judged itself."
)


def texts_sentence(study: Study) -> str:
    """Say which corpora are of the calibration's kind, and how much more damage there is on the others."""
    corpora, read = study.corpora, list(study.spec.calibration)
    calibrated = [variant for variant in _alterations(study) if variant.manifest.get("calibrated")]
    if not corpora or not read or not calibrated:
        return ""
    inside = [corpus for corpus in corpora if corpus in read]
    outside = [corpus for corpus in corpora if corpus not in read]
    begin = f"Calibration read {_listed(read)}"
    if not outside:
        return (
            f"{begin}, and damage is measured on other documents of the same: expect more of calibrated methods on "
            "text of another kind, which nothing here measures."
        )
    if not inside:
        return (
            f"{begin}, and damage is measured on text of other kinds ({_listed(outside)}) alone: expect less of "
            "calibrated methods on text like the calibration’s, which nothing here measures."
        )
    free = [variant for variant in _alterations(study) if not variant.manifest.get("calibrated")]
    seen = [
        f"{_times(ratio)} as much for {what} (median of {count})"
        for what, (ratio, count) in (
            ("calibrated variants", _off_over_on(study.numbers, calibrated, inside, outside)),
            ("variants without calibration", _off_over_on(study.numbers, free, inside, outside)),
        )
        if count
    ]
    compared = f" Damage (KL) on {_listed(outside)} is {' and '.join(seen)} as on {_listed(inside)}." if seen else ""
    return (
        f"{begin}: a number on {_listed(inside)} holds for other documents of the same kind, one on {_listed(outside)} "
        f"for text that calibration did not see.{compared}"
    )


def draws_sentence(study: Study) -> str:
    """Say how far damage moves with the calibration draw, and whether that was measured here."""
    if not any(variant.manifest.get("calibrated") for variant in _alterations(study)):
        return ""
    known = draws.measure(study.inputs, study.numbers)
    held = "Rankings, claims, curves and mitigations hold a standard deviation over calibration draws of"
    assumed = f"{100 * draws.SPREAD:.0f}\u00a0% of the damage"
    if known.measured is None:
        return (
            f"{held} {assumed}, which is assumed: no three variants were repeated with another calibration set. {FILES}"
        )
    return (
        f"{held} {100 * known.measured.share:.1f}\u00a0% of the damage for {_listed(sorted(known.methods))}, as "
        f"{_listed(known.repeated)} measured it here with another calibration set, and an assumed {assumed} for other "
        f"calibrated methods. {FILES}"
    )


def _alterations(study: Study) -> list[Variant]:
    return [
        variant
        for variant in study.inputs.variants.values()
        if variant.name != BASE and not variant.is_control and variant.failure is None
    ]


def _off_over_on(
    numbers: Numbers, variants: Sequence[Variant], inside: Sequence[str], outside: Sequence[str]
) -> tuple[float, int]:
    """Return the median over variants of KL outside over KL inside, means over corpora, and of how many."""
    ratios = []
    for variant in variants:
        kls = [_mean_kl(numbers, variant.name, corpora) for corpora in (outside, inside)]
        if kls[0] is not None and kls[1] is not None and min(kls[0], kls[1]) > ROUNDING:
            ratios.append(kls[0] / kls[1])
    return (statistics.median(ratios), len(ratios)) if ratios else (1.0, 0)


def _mean_kl(numbers: Numbers, name: str, corpora: Sequence[str]) -> float | None:
    known = [numbers.get(name, "kl_mean", corpus) for corpus in corpora]
    values = [kl.value for kl in known if kl is not None]
    return statistics.mean(values) if len(values) == len(corpora) else None


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
