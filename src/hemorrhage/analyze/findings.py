"""What the numbers say, in sentences: what the report opens with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hemorrhage.analyze.curves import FEWER_IS_WORSE, Sweep, failure
from hemorrhage.analyze.decoding import ALL_STRATEGIES
from hemorrhage.analyze.figures import factor
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.language import ROUNDING
from hemorrhage.analyze.tables import Estimate, Numbers
from hemorrhage.analyze.tasks import ALL_HARNESS_TASKS, ALL_PROGRAMS, ALL_TASKS, Suite

RATIO_BUDGET = 1.1
KL_BUDGET = 0.1
"""A variant is inside the budget when the upper ends of the intervals of its perplexity, over the base's, and
of its mean KL (nats per token) stay below these on every corpus."""

FAMILY_NAMES = {
    "quantize": "Quantized weights",
    "activations": "Quantized activations and caches",
    "prune": "Pruned weights",
    "structure": "Pruned widths",
    "depth": "Depth pruning",
    "rank": "Low rank",
    "expand": "Layer expansion",
    "experts": "Experts and routing",
    "recover": "Recovery training",
}


def family_name(family: str) -> str:
    """What people call a family."""
    return FAMILY_NAMES.get(family, family.capitalize() or "Other")


@dataclass(frozen=True)
class Damage:
    """A variant's damage on its worst corpus, and whether it stays inside the budget on all of them."""

    variant: Variant
    corpus: str
    ratio: Estimate
    kl: Estimate
    size: float
    inside: bool


def damages(inputs: Inputs, numbers: Numbers, corpora: Sequence[str]) -> list[Damage]:
    """Damage of every measured variant but the base, mildest first."""
    found = []
    for variant in inputs.variants.values():
        ratios = {corpus: numbers.get(variant.name, "ln_perplexity_ratio", corpus) for corpus in corpora}
        kls = {corpus: numbers.get(variant.name, "kl_mean", corpus) for corpus in corpora}
        size = numbers.get(variant.name, "size_ratio")
        if variant.name == BASE or size is None or None in ratios.values() or None in kls.values():
            continue
        known = {corpus: ratio for corpus, ratio in ratios.items() if ratio}
        known_kls = {corpus: kl for corpus, kl in kls.items() if kl}
        worst = max(known, key=lambda corpus: known[corpus].value)
        inside = all(ratio.high < math.log(RATIO_BUDGET) for ratio in known.values()) and all(
            kl.high < KL_BUDGET for kl in known_kls.values()
        )
        found.append(Damage(variant, worst, known[worst], known_kls[worst], size.value, inside))
    return sorted(found, key=lambda damage: damage.ratio.value)


def families(inputs: Inputs) -> list[str]:
    """Families in the report's order, those it does not know last."""
    present = dict.fromkeys(variant.family for variant in inputs.variants.values() if variant.name != BASE)
    known = [family for family in FAMILY_NAMES if family in present]
    return known + [family for family in present if family not in FAMILY_NAMES]


def furthest(family: str, found: Sequence[Damage], percent: float) -> dict[str, str]:
    """How far a family goes inside the budget: a headline, and the numbers behind it."""
    members = [damage for damage in found if damage.variant.family == family]
    if not members:
        return {"headline": "nothing measured", "detail": "No variant of this family could be measured."}
    inside = [damage for damage in members if damage.inside]
    if not inside:
        mildest = members[0]
        detail = f"The mildest is {mildest.variant.name}, with {_numbers(mildest, percent)}."
        return {"headline": "none inside the budget", "detail": detail}
    if all(damage.size >= 1 for damage in members):
        names = ", ".join(damage.variant.name for damage in inside)
        outside = [f"{item.variant.name} {factor(item.ratio.value)}" for item in members if not item.inside]
        rest = f" Outside: {', '.join(outside)}." if outside else ""
        return {"headline": names, "detail": f"At most {_numbers(inside[-1], percent)}.{rest}"}
    chosen = min(inside, key=lambda damage: damage.size)
    bits = chosen.variant.manifest["effective_bits"]
    size = f"{100 * chosen.size:.0f}\u00a0% of the base's size, {bits:.1f} effective bits per parameter"
    detail = f"{size}; {_numbers(chosen, percent)}. {len(inside)} of {len(members)} variants are inside."
    return {"headline": chosen.variant.name, "detail": detail}


def smallest(found: Sequence[Damage]) -> Damage | None:
    """The smallest variant inside the budget that is smaller than the base, of all families."""
    inside = [damage for damage in found if damage.inside and damage.size < 1]
    return min(inside, key=lambda damage: damage.size) if inside else None


def _numbers(damage: Damage, percent: float) -> str:
    value, low, high = (factor(number) for number in damage.ratio[:3])
    return (
        f"{value} the base's perplexity ({percent:g}\u00a0% interval {low} to {high}) "
        f"and a KL of {damage.kl.value:.2g} nats per token on {damage.corpus}"
    )


def where(entry: dict[str, Any], kind: str) -> str:
    """A threshold of one curve as a cell of a table."""
    found = entry[kind]
    if found["answer"] != "found":
        return found["answer"]
    unit = _unit(entry)
    low = "" if found["low"] is None else _number(entry, found["low"])
    high = "" if found["high"] is None else _number(entry, found["high"])
    limits = f"{low} to {high}" if low and high else f"beyond {low or high}"
    return f"{_number(entry, found['estimate'])} {unit} ({limits})"


def why(entry: dict[str, Any], kind: str) -> str:
    """What stands behind a threshold: the measured points around it, or why there is none."""
    found = entry[kind]
    unit = _unit(entry)
    around = ""
    if "between" in found:
        low, high = (_number(entry, value) for value in found["between"])
        around = f"between the measured {low} and {high} {unit}"
    if found["answer"] == "found":
        return around
    return found["reason"]


def _unit(entry: dict[str, Any]) -> str:
    return "bits" if entry["axis"] in FEWER_IS_WORSE else "steps" if entry["axis"] == "steps" else "%"


def _number(entry: dict[str, Any], value: float) -> str:
    return f"{value:.2f}" if entry["axis"] in FEWER_IS_WORSE else f"{100 * value:.1f}"


def doubling(thresholds: Sequence[dict[str, Any]], sweeps: Sequence[Sweep], corpus: str) -> str:
    """Where the perplexity of each curve doubles, as one sentence."""
    names = [sweep.name for sweep in sweeps if len(sweep.variants) > 1]
    entries = [entry for entry in thresholds if entry["name"] in names and entry["corpus"] == corpus]
    reached = [entry for entry in entries if entry["two_fold"]["answer"] == "found"]
    never = [entry["name"] for entry in entries if entry["two_fold"]["answer"] == "no cliff in range"]
    parts = []
    if reached:
        order = sorted(reached, key=lambda entry: abs(entry["two_fold"]["estimate"] - entry["base"]), reverse=True)
        listed = ", ".join(
            f"{entry['name']} {_number(entry, entry['two_fold']['estimate'])}\u00a0{_unit(entry)}" for entry in order
        )
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


def spread_rows(numbers: Numbers) -> list[dict[str, str]]:
    """How much the choice of a decoding strategy moves the accuracy of each decoded variant."""
    rows = []
    for dataset in numbers.datasets("accuracy", strategy=True):
        for variant in numbers.decoded():
            by_strategy = {
                name: numbers.get(variant, "accuracy", dataset, name) for name in numbers.strategies("accuracy")
            }
            known = {name: found for name, found in by_strategy.items() if found}
            if not known:
                continue
            best, worst = (choose(known, key=lambda name: known[name].value) for choose in (max, min))
            row = {
                "variant": variant,
                "best": _share(best, known[best]),
                "worst": _share(worst, known[worst]),
            }
            for metric in ("spread_over_max", "spread_over_min", "spread_cv", "spread_by_chance"):
                row[metric] = _percent(numbers.get(variant, metric, dataset, ALL_STRATEGIES))
            spread = numbers.get(variant, "spread_over_max", dataset, ALL_STRATEGIES)
            chance = numbers.get(variant, "spread_by_chance", dataset, ALL_STRATEGIES)
            row["beyond"] = "" if not spread or not chance else "yes" if spread.value > chance.value else "no"
            rows.append(row)
    return rows


def _share(name: str, found: Estimate) -> str:
    return f"{name} {100 * found.value:.0f}\u00a0%"


def _percent(found: Estimate | None) -> str:
    if found is None:
        return "undefined"
    if math.isnan(found.low):
        return f"{100 * found.value:.0f}\u00a0%"
    return f"{100 * found.value:.0f}\u00a0% ({100 * found.low:.0f} to {100 * found.high:.0f})"


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
            found.append(Task(name, SUITES[suite.together], items, guessing, shown, note))
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
