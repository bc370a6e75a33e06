"""What to ship: the recommendation in sentences, overall and by family, and every variant against every limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hemorrhage.analyze.axes import sweeps
from hemorrhage.analyze.budget import DAMAGE_KINDS, INSIDE, OUTSIDE, UNRESOLVED, Check
from hemorrhage.analyze.report.charts.scales import factor
from hemorrhage.analyze.report.sections.categories import few_sentence
from hemorrhage.analyze.report.sections.families import families, family_name
from hemorrhage.analyze.report.sections.thresholds import doubling_sentence
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.shipping import Lossless, Verdict, lossless, nearest, pick, theoretical, undecided

SHORT_NAMES = {
    "kl": "KL",
    "kl_p99": "99th percentile of KL",
    "kl_worst_window": "KL of the worst window",
    "flips": "flips",
    "accuracy_loss_points": "accuracy lost",
    "perplexity": "perplexity",
}
"""Key of the budget -> what a sentence calls it."""


@dataclass(frozen=True)
class Advice:
    """A headline, and the numbers behind it."""

    headline: str
    details: list[str]


@dataclass(frozen=True)
class FamilyAdvice:
    """What to ship of a family, and where the perplexity of its curves doubles."""

    name: str
    advice: Advice
    doubling: str


@dataclass(frozen=True)
class CheckCell:
    """The check of a limit that is nearest to it, or furthest beyond it."""

    text: str
    note: str
    sort: float | str
    answer: str


@dataclass(frozen=True)
class VerdictRow:
    """A variant against every limit; ``size`` and ``counted`` in per cent of the base."""

    name: str
    family: str
    size: str
    counted: str
    engine: str
    cells: list[CheckCell | None]
    answer: str
    reason: str


@dataclass(frozen=True)
class Ship:
    """The section: ``limits`` by name, the same in words, and what stays within them; ``few``: categories of texts that
    are in no verdict."""

    limits: list[tuple[str, str]]
    budget: str
    few: str
    overall: Advice
    quantized_before: str
    families: list[FamilyAdvice]
    verdicts: list[VerdictRow]


def section(study: Study) -> Ship:
    """Return the section of a study."""
    corpus = study.corpora[0] if study.corpora else ""
    curves = sweeps(study.inputs)
    return Ship(
        limits=[(DAMAGE_KINDS[kind].name, amount(kind, limit)) for kind, limit in study.spec.budget.items()],
        budget=budget_text(study.spec.budget),
        few=few_sentence(study),
        overall=advice(study.verdicts),
        quantized_before=quantized_before(lossless(study.inputs), pick(study.verdicts)),
        families=[
            FamilyAdvice(
                name=family_name(family),
                advice=advice([verdict for verdict in study.verdicts if verdict.variant.family == family]),
                doubling=doubling_sentence(
                    study.thresholds, [curve for curve in curves if curve.family == family], corpus
                ),
            )
            for family in families(study.inputs)
        ],
        verdicts=verdict_rows(study.verdicts, study.spec.budget),
    )


def advice(candidates: Sequence[Verdict]) -> Advice:
    """Say which of some variants to ship, and what else is inside the budget."""
    if not candidates:
        return Advice("nothing measured", ["No variant could be measured."])
    picked = pick(candidates)
    unusable, maybe = theoretical(candidates, picked), undecided(candidates, picked)
    if picked is not None:
        details = [
            f"{size_sentence(picked)} {_binding(picked)}",
            f"Loads in {picked.size.engine}.",
            *filter(None, [picked.size.refusal]),
        ]
    else:
        details = [] if maybe else [_nothing(candidates)]
    if unusable is not None:
        counted = f"{100 * unusable.size.smallest:.0f}\u00a0%"
        details.append(
            f"{unusable.variant.name} is inside too and would be {counted}, but in theory only: "
            f"{unusable.size.hindrance}."
        )
    if maybe is not None:
        unresolved = _worst(maybe.failing)
        details.append(f"{maybe.variant.name} ({100 * maybe.size.share:.0f}\u00a0%) may be inside: {unresolved}.")
    inside = [verdict for verdict in candidates if verdict.inside]
    details.append(f"{len(inside)} of {len(candidates)} variants are inside.")
    same = [verdict.variant.name for verdict in inside if verdict.size.share >= 1]
    if picked is None and same:
        details.append(f"Inside, but no smaller on disk: {', '.join(same)}.")
    return Advice(picked.variant.name if picked else "not decided" if maybe else "nothing", details)


def quantized_before(base: Lossless | None, picked: Verdict | None) -> str:
    """Say what a base that was quantized before the study takes without loss; empty where it was not."""
    if base is None:
        return ""
    text = (
        f"The base was quantized before this study: as {base.type} it takes {base.bytes / 1e6:.1f}\u00a0MB, "
        f"{100 * base.share:.0f}\u00a0% of what it takes here, and loses nothing."
    )
    if picked is not None and picked.size.share >= base.share:
        text += f" {picked.variant.name} is no smaller than that: ship the {base.type} file instead."
    return text


def size_sentence(verdict: Verdict) -> str:
    """Write the size of a variant as a sentence."""
    bits = verdict.variant.manifest["effective_bits"]
    share = f"{100 * verdict.size.share:.0f}\u00a0% of the base's bytes on disk"
    return f"{share} ({verdict.size.bytes / 1e6:.1f}\u00a0MB, {bits:.1f} bits per parameter)."


def _binding(verdict: Verdict) -> str:
    return f"Nearest its limit: {check_text(verdict.binding)}." if verdict.binding else ""


def _nothing(candidates: Sequence[Verdict]) -> str:
    closest = nearest([verdict for verdict in candidates if verdict.size.share < 1] or candidates)
    if closest is None:
        return "Nothing was measured that the budget limits."
    if closest.inside:
        return "What is inside is not smaller on disk, or no engine can use it."
    return f"{closest.variant.name} comes nearest: {_worst(closest.failing)}."


def _worst(failing: Sequence[Check]) -> str:
    """Write the check that is furthest beyond its limit, and how many others do not hold."""
    worst = max(failing, key=lambda check: check.used)
    others = len(failing) - 1
    return check_text(worst) + (f"; {others} other {'check' if others == 1 else 'checks'} not held" if others else "")


def check_text(check: Check) -> str:
    """Write a check: ``KL on code 0.021 (0.018 to 0.024), upper bound 0.026, limit 0.1``."""
    name = SHORT_NAMES[check.kind]
    if check.estimate is None:
        return f"{name}: {check.answer} ({check.reason})"
    numbers = amount(check.kind, check.estimate)
    if check.low is not None and check.high is not None and check.bound is not None:
        numbers += f" ({amount(check.kind, check.low)} to {amount(check.kind, check.high)})"
        if check.bound > check.high:
            numbers += f", upper bound {amount(check.kind, check.bound)}"
    reason = f", {check.answer}: {check.reason}" if check.reason else ""
    return f"{name} on {check.dataset} {numbers}, limit {amount(check.kind, check.limit)}{reason}"


def amount(kind: str, value: float) -> str:
    """Write a number of a check with its unit."""
    if kind == "perplexity":
        return factor(math.log(value))
    if kind in ("kl", "kl_p99", "kl_worst_window"):
        return f"{value:.2g}"
    if kind == "accuracy_loss_points":
        return f"{value:.1f} points"
    return f"{100 * value:.1f}\u00a0%"


def verdict_rows(verdicts: Sequence[Verdict], budget: Mapping[str, float]) -> list[VerdictRow]:
    """Return a row per variant, smallest first."""
    return [_verdict_row(verdict, budget) for verdict in sorted(verdicts, key=lambda verdict: verdict.size.share)]


def _verdict_row(verdict: Verdict, budget: Mapping[str, float]) -> VerdictRow:
    cells: list[CheckCell | None] = []
    for kind in budget:
        checks = [check for check in verdict.checks if check.kind == kind]
        cells.append(_check_cell(max(checks, key=lambda check: check.used)) if checks else None)
    failing = sorted({check.kind for check in verdict.failing}, key=list(DAMAGE_KINDS).index)
    is_open = {check.answer for check in verdict.failing} <= {UNRESOLVED}
    size = verdict.size
    return VerdictRow(
        name=verdict.variant.name,
        family=family_name(verdict.variant.family),
        size=f"{100 * size.share:.1f}",
        counted=f"{100 * size.counted:.1f}" if size.hindrance else "",
        engine=f"theoretical: {size.hindrance}" if size.hindrance else size.engine,
        cells=cells,
        answer=INSIDE if verdict.inside else UNRESOLVED if is_open else OUTSIDE,
        reason=verdict.binding.kind if verdict.inside and verdict.binding else ", ".join(failing),
    )


def _check_cell(check: Check) -> CheckCell:
    if check.estimate is None or check.bound is None:
        return CheckCell(text="–", note=check.reason, sort="", answer=check.answer)
    numbers = "of those measured"
    if check.low is not None and check.high is not None:
        interval = f"{amount(check.kind, check.low)} to {amount(check.kind, check.high)}"
        numbers = f"{interval}, bound {amount(check.kind, check.bound)}"
    needed = f"; {check.reason}" if check.answer == UNRESOLVED else ""
    return CheckCell(
        text=amount(check.kind, check.estimate),
        note=f"{numbers}, {check.dataset}{needed}",
        sort=check.estimate,
        answer=check.answer,
    )


def budget_text(budget: Mapping[str, float]) -> str:
    """Write the budget in words."""
    limits = {
        "kl": lambda limit: f"{limit:g} nats of KL per token",
        "kl_p99": lambda limit: f"{limit:g} nats of KL at the 99th percentile",
        "kl_worst_window": lambda limit: f"{limit:g} nats of KL per token in the worst window",
        "flips": lambda limit: f"{100 * limit:g}\u00a0% of answers flipped",
        "accuracy_loss_points": lambda limit: f"{limit:g} points of accuracy lost",
        "perplexity": lambda limit: f"{limit:g} times the base's perplexity",
    }
    return ", ".join(limits[kind](budget[kind]) for kind in limits if kind in budget)
