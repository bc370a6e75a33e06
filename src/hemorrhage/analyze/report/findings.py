"""What the numbers say, in sentences: what the report opens with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hemorrhage.analyze.axes import FEWER_IS_WORSE, Sweep, failure
from hemorrhage.analyze.budget import DAMAGE_KINDS, INSIDE, OUTSIDE, UNRESOLVED, Check
from hemorrhage.analyze.curves.entries import NO_CLIFF, CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.report.figures import factor
from hemorrhage.analyze.rows.language import ROUNDING
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.rows.tasks import ALL_HARNESS_TASKS, ALL_PROGRAMS, ALL_TASKS, Suite
from hemorrhage.analyze.verdicts.shipping import Judged, Lossless, nearest, pick, theoretical, undecided
from hemorrhage.compress.info import FAMILIES


def family_name(family: str) -> str:
    """What people call a family."""
    return FAMILIES[family].title if family in FAMILIES else family.capitalize() or "Other"


def families(inputs: Inputs) -> list[str]:
    """Families in the report's order, those it does not know last."""
    present = dict.fromkeys(variant.family for variant in inputs.variants.values() if variant.name != BASE)
    known = [family for family in FAMILIES if family in present]
    return known + [family for family in present if family not in FAMILIES]


def advice(candidates: Sequence[Judged]) -> dict[str, Any]:
    """What to ship of some variants: a headline, the numbers behind it, and what stands beside it."""
    if not candidates:
        return {"headline": "nothing measured", "details": ["No variant could be measured."]}
    picked = pick(candidates)
    beside, maybe = theoretical(candidates, picked), undecided(candidates, picked)
    if picked is not None:
        details = [f"{stored(picked)} {_binding(picked)}", f"Loads in {picked.size.engine}."]
    else:
        details = [] if maybe else [_none(candidates)]
    if beside is not None:
        counted = f"{100 * beside.size.smallest:.0f}\u00a0%"
        details.append(
            f"{beside.variant.name} is inside too and would be {counted}, but in theory only: {beside.size.hindrance}."
        )
    if maybe is not None:
        open_one = _worst(maybe.failing)
        details.append(f"{maybe.variant.name} ({100 * maybe.size.share:.0f}\u00a0%) may be inside: {open_one}.")
    inside = [one for one in candidates if one.inside]
    details.append(f"{len(inside)} of {len(candidates)} variants are inside.")
    same = [one.variant.name for one in inside if one.size.share >= 1]
    if picked is None and same:
        details.append(f"Inside, but no smaller on disk: {', '.join(same)}.")
    return {"headline": picked.variant.name if picked else "not decided" if maybe else "nothing", "details": details}


def quantized_before(base: Lossless | None, picked: Judged | None) -> str:
    """What to know of a base that was quantized before the study; empty where it was not."""
    if base is None:
        return ""
    said = (
        f"The base was quantized before this study: as {base.type} it takes {base.bytes / 1e6:.1f}\u00a0MB, "
        f"{100 * base.share:.0f}\u00a0% of what it takes here, and loses nothing."
    )
    if picked is not None and picked.size.share >= base.share:
        said += f" {picked.variant.name} is no smaller than that: ship the {base.type} file instead."
    return said


def stored(one: Judged) -> str:
    """The size of a variant as a sentence."""
    bits = one.variant.manifest["effective_bits"]
    share = f"{100 * one.size.share:.0f}\u00a0% of the base's bytes on disk"
    return f"{share} ({one.size.bytes / 1e6:.1f}\u00a0MB, {bits:.1f} bits per parameter)."


def _binding(one: Judged) -> str:
    bound = one.binding
    return f"Nearest its limit: {said(bound)}." if bound else ""


def _none(candidates: Sequence[Judged]) -> str:
    close = nearest([one for one in candidates if one.size.share < 1] or candidates)
    if close is None:
        return "Nothing was measured that the budget limits."
    if close.inside:
        return "What is inside is not smaller on disk, or no engine can use it."
    return f"{close.variant.name} comes nearest: {_worst(close.failing)}."


def _worst(failing: Sequence[Check]) -> str:
    """The check that is furthest beyond its limit, and how many others do not hold."""
    worst = max(failing, key=lambda check: check.used)
    others = len(failing) - 1
    return said(worst) + (f"; {others} other {'check' if others == 1 else 'checks'} not held" if others else "")


def said(check: Check) -> str:
    """A check in words: ``KL on code 0.021 (0.018 to 0.024), bound 0.026, limit 0.1``."""
    name = {"kl": "KL", "flips": "flips", "task_loss": "accuracy lost", "perplexity": "perplexity"}[check.kind]
    if check.estimate is None:
        return f"{name}: {check.answer} ({check.reason})"
    numbers = f"{amount(check.kind, check.estimate)}"
    if check.low is not None and check.high is not None and check.bound is not None:
        numbers += f" ({amount(check.kind, check.low)} to {amount(check.kind, check.high)})"
        if check.bound > check.high:
            numbers += f", upper bound {amount(check.kind, check.bound)}"
    why = f", {check.answer}: {check.reason}" if check.reason else ""
    return f"{name} on {check.dataset} {numbers}, limit {amount(check.kind, check.limit)}{why}"


def amount(kind: str, value: float) -> str:
    """A number of a check with its unit."""
    if kind == "perplexity":
        return factor(math.log(value))
    if kind == "kl":
        return f"{value:.2g}"
    return f"{100 * value:.1f}\u00a0%"


def verdict_rows(found: Sequence[Judged], budget: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row per variant, smallest first: its size, the check of each limit that is nearest or furthest beyond it."""
    rows = []
    for one in sorted(found, key=lambda one: one.size.share):
        cells = []
        for kind in budget:
            mine = [check for check in one.checks if check.kind == kind]
            cells.append(_verdict_cell(max(mine, key=lambda check: check.used)) if mine else None)
        failing = sorted({check.kind for check in one.failing}, key=list(DAMAGE_KINDS).index)
        open_ones = {check.answer for check in one.failing} <= {UNRESOLVED}
        rows.append(
            {
                "name": one.variant.name,
                "family": family_name(one.variant.family),
                "size": f"{100 * one.size.share:.1f}",
                "counted": f"{100 * one.size.counted:.1f}" if one.size.hindrance else "",
                "engine": (one.size.hindrance and f"theoretical: {one.size.hindrance}") or one.size.engine,
                "cells": cells,
                "answer": INSIDE if one.inside else UNRESOLVED if open_ones else OUTSIDE,
                "why": one.binding.kind if one.inside and one.binding else ", ".join(failing),
            }
        )
    return rows


def _verdict_cell(check: Check) -> dict[str, Any]:
    if check.estimate is None or check.bound is None:
        return {"text": "–", "note": check.reason, "sort": "", "answer": check.answer}
    note = f"{amount(check.kind, check.low or 0.0)} to {amount(check.kind, check.high or 0.0)}"
    needed = f"; {check.reason}" if check.answer == UNRESOLVED else ""
    return {
        "text": amount(check.kind, check.estimate),
        "note": f"{note}, bound {amount(check.kind, check.bound)}, {check.dataset}{needed}",
        "sort": check.estimate,
        "answer": check.answer,
    }


def budget_words(budget: Mapping[str, float]) -> str:
    """The budget as people read it."""
    words = {
        "kl": lambda limit: f"{limit:g} nats of KL per token",
        "flips": lambda limit: f"{100 * limit:g}\u00a0% of answers flipped",
        "task_loss": lambda limit: f"{100 * limit:g} points of accuracy lost",
        "perplexity": lambda limit: f"{limit:g} times the base's perplexity",
    }
    return ", ".join(words[kind](budget[kind]) for kind in words if kind in budget)


def where(entry: CurveEntry, definition: str) -> str:
    """Write a threshold of one curve as a cell of a table."""
    threshold = entry.thresholds[definition]
    if not threshold.is_located:
        return threshold.answer
    low, high = ("" if end is None else _number(entry, end) for end in (threshold.low, threshold.high))
    limits = f"{low} to {high}" if low and high else f"beyond {low or high}" if low or high else "anywhere"
    return f"{_number(entry, threshold.estimate)} {_unit(entry)} ({limits})"


def why(entry: CurveEntry, definition: str) -> str:
    """Name the measured points around a threshold, or say why there is none."""
    threshold = entry.thresholds[definition]
    if not threshold.is_located:
        return threshold.reason
    if threshold.between is None:
        return ""
    low, high = (_number(entry, value) for value in threshold.between)
    return f"between the measured {low} and {high} {_unit(entry)}"


def _unit(entry: CurveEntry) -> str:
    return "bits" if entry.axis in FEWER_IS_WORSE else "steps" if entry.axis == "steps" else "%"


def _number(entry: CurveEntry, value: float) -> str:
    return f"{value:.2f}" if entry.axis in FEWER_IS_WORSE else f"{100 * value:.1f}"


def doubling(thresholds: Sequence[CurveEntry], sweeps: Sequence[Sweep], corpus: str) -> str:
    """Say in one sentence where the perplexity of each curve doubles."""
    names = [sweep.name for sweep in sweeps if len(sweep.variants) > 1]
    points = {
        entry.name: (entry, entry.thresholds["two_fold"])
        for entry in thresholds
        if entry.name in names and entry.corpus == corpus
    }
    reached = [(entry, point.estimate) for entry, point in points.values() if point.is_located]
    never = [name for name, (_, point) in points.items() if point.answer == NO_CLIFF]
    parts = []
    if reached:
        furthest_first = sorted(reached, key=lambda pair: abs(pair[1] - pair[0].base), reverse=True)
        listed = ", ".join(f"{entry.name} {_number(entry, at)}\u00a0{_unit(entry)}" for entry, at in furthest_first)
        parts.append(f"perplexity doubles at {listed}.")
    if never:
        start = "It" if reached else "perplexity"
        parts.append(f"{start} never doubles for {', '.join(never)} in the range measured.")
    return f"On {corpus}, {' '.join(parts)}" if parts else ""


def counts(inputs: Inputs) -> tuple[int, int]:
    """Number of variants, and of those among them that failed."""
    variants = [variant for variant in inputs.variants.values() if variant.name != BASE]
    return len(variants), sum(failure(inputs, variant) is not None for variant in variants)


def failures(inputs: Inputs) -> list[dict[str, str]]:
    """Every output that could not be made, with its step and reason."""
    found = []
    for variant in inputs.variants.values():
        reason = failure(inputs, variant)
        if reason is not None:
            step = "compress" if variant.failure else "evaluate"
            found.append({"variant": variant.name, "step": step, "reason": reason})
    for name, output in inputs.decodes.items():
        if output.failure is not None:
            found.append({"variant": name, "step": "decode", "reason": output.failure})
    return found


def noise(inputs: Inputs, numbers: Numbers, corpora: Sequence[str]) -> str:
    """What evaluating the base model itself gave, as one sentence: below it nothing can be told from nothing."""
    if BASE not in inputs.evaluations or inputs.evaluations[BASE].failure is not None:
        return f"There was no A/A run: only a KL below {ROUNDING:g} nats per token, rounding, counts as noise."
    parts = []
    for corpus in corpora:
        kl, most = numbers.get(BASE, "kl_mean", corpus), numbers.get(BASE, "kl_max", corpus)
        ratio = numbers.get(BASE, "ln_perplexity_ratio", corpus)
        if kl and most and ratio:
            parts.append(
                f"a KL of {_size(kl.value)} nats per token (at most {_size(most.value)}) and a log-perplexity ratio of "
                f"{_size(ratio.value)} on {corpus}"
            )
    if not parts:
        return ""
    return (
        f"Noise floor: the base model, evaluated again like any variant (A/A), gives {' and '.join(parts)}. "
        f"Rounding alone leaves up to {ROUNDING:g} nats; a variant has to lie above both."
    )


def _size(value: float) -> str:
    return f"{value:.2g}" if value else "0"


def detectable(inputs: Inputs, numbers: Numbers, corpora: Sequence[str]) -> str:
    """The middle one of the variants' minimum detectable effects, as one sentence."""
    parts = []
    for metric, datasets, written in (
        ("ln_perplexity_ratio", list(corpora), lambda value: f"{100 * math.expm1(value):.2g}\u00a0% of perplexity"),
        ("accuracy_change", numbers.datasets("accuracy_change"), lambda value: f"{100 * value:.0f} points of accuracy"),
    ):
        for dataset in datasets:
            found = [numbers.get(name, metric, dataset) for name in inputs.variants]
            known = [one.mde for one in found if one and not math.isnan(one.mde)]
            if known:
                parts.append(f"{written(statistics.median(known))} on {dataset}")
    return (
        f"What a test here finds four times out of five (middle of the variants): {'; '.join(parts)}." if parts else ""
    )


SUITES = {ALL_TASKS: "probe", ALL_HARNESS_TASKS: "lm-eval", ALL_PROGRAMS: "code"}


@dataclass(frozen=True)
class Task:
    """A task as the base answers it."""

    name: str
    suite: str
    items: int
    guessing: str
    accuracy: str
    note: str


def tasks(rows: pd.DataFrame, suites: Sequence[Suite]) -> list[Task]:
    """Every task with the base's accuracy, and whether it says anything."""
    of_base = rows[(rows["variant"] == BASE) & (rows["family"] == BASE)]
    accuracies = of_base[of_base["metric"] == "accuracy"].set_index("dataset")
    found = []
    for suite in suites:
        manifests: list[dict[str, Any]] = [output.manifest.get("tasks") or {} for output in suite.outputs.values()]
        for name, fact in next(filter(None, manifests), {}).items():
            shown, items = "failed", 0
            if name in accuracies.index and accuracies.status[name] != "failed":
                mine = accuracies.loc[name]
                shown = f"{100 * mine.estimate:.1f} ({100 * mine.low:.1f} to {100 * mine.high:.1f})"
                items = int(mine.n)
            guessing = f"{100 * fact['chance']:.1f}"
            if fact.get("floor") is not None:
                guessing += f"; {100 * fact['floor']:.1f} with one answer"
            note = "at chance: takes part in no mean and no test" if name in suite.at_chance else ""
            found.append(Task(name, SUITES[suite.name], items, guessing, shown, note))
    return found


def costs(inputs: Inputs, numbers: Numbers) -> list[dict[str, str]]:
    """What running each variant cost: a row of texts each."""
    found = []
    for name in inputs.variants:
        prefill, decode = (numbers.get(name, f"{part}_tokens_per_second") for part in ("prefill", "decode"))
        peak, cache, formula = (numbers.get(name, part) for part in ("peak_bytes", "kv_bytes", "kv_bytes_formula"))
        known = prefill or decode
        if known is None:
            continue
        found.append(
            {
                "variant": name,
                "prefill": _speed(prefill),
                "decode": _speed(decode),
                "peak": f"{peak.value / 1e6:,.0f}" if peak else "–",
                "cache": f"{cache.value / 1e6:.2f}" if cache else "–",
                "formula": f"{formula.value / 1e6:.2f}" if formula else "–",
                "protocol": known.protocol.partition(" theoretical: ")[0],
                "theoretical": known.protocol.partition(" theoretical: ")[2],
            }
        )
    return found


def _speed(found: Estimate | None) -> str:
    return f"{found.value:,.0f} ({found.low:,.0f} to {found.high:,.0f})" if found else "–"
