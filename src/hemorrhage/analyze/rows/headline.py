"""What a table of experiments shows of a study: headline.json, a few rows for `dvc exp show` and `dvc metrics diff`.

Of every variant these would be hundreds; those are in metrics.json. No name has a bracket: rich, which prints DVC's
tables, takes what stands in one for markup and prints nothing, so that two protocols would look alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.rows.names import parse
from hemorrhage.analyze.rows.tables import Headline, round_digits
from hemorrhage.analyze.stored import Json

MOST_ROWS = 20
"""Numbers in the file, at most."""

BY_CORPUS, WORST, MEDIAN = "kl", "kl_worst_corpus", "kl_median"


def headline(metrics: Headline, inputs: Inputs) -> dict[str, Json]:
    """Return the content of headline.json; ``metrics``: that of metrics.json.

    Counts, the pick, and KL in nats per token, as finely as there is room: ``kl``, by variant and corpus;
    ``kl_worst_corpus``, by variant; ``kl_median``, of the worst corpora of a sweep's variants, or of a family's.
    ``protocol`` is the tag of KL's names: numbers of two protocols don't compare.
    """
    by_variant = {name: values for name in metrics["variants"] if name != BASE and (values := _kl(metrics, name))}
    worst = {name: max(values.values()) for name, values in by_variant.items()}
    fixed: dict[str, Json] = {
        **{f"variants_{name}" if name != "variants" else name: count for name, count in metrics["counts"].items()},
        "pick": metrics["ship"].get("variant", "nothing"),
        "pick_size": metrics["ship"].get("smallest", 1.0),
        "protocol": " ".join(_tags(metrics)) or "none",
    }
    if worst:
        fixed["kl_median_of_all"] = round_digits(statistics.median(worst.values()))
    return fixed | _divergences(by_variant, worst, inputs, MOST_ROWS - len(fixed))


def _divergences(
    by_variant: Mapping[str, Mapping[str, float]], worst: Mapping[str, float], inputs: Inputs, room: int
) -> dict[str, Json]:
    """Return KL in the finest form of which there are no more than ``room`` numbers."""
    if sum(map(len, by_variant.values())) <= room:
        return {BY_CORPUS: {name: dict(values) for name, values in by_variant.items()}}
    if len(worst) <= room:
        return {WORST: dict(worst)}
    variants = inputs.variants
    of_sweeps = _medians(worst, [variants[name].sweep for name in worst])
    if len(of_sweeps) <= room:
        return {MEDIAN: of_sweeps}
    of_families = _medians(worst, [variants[name].family for name in worst])
    return {MEDIAN: dict(list(of_families.items())[:room])}


def _medians(values: Mapping[str, float], groups: Sequence[str]) -> dict[str, Json]:
    grouped: dict[str, list[float]] = {}
    for value, group in zip(values.values(), groups, strict=True):
        grouped.setdefault(group, []).append(value)
    return {group: round_digits(statistics.median(members)) for group, members in grouped.items()}


def _kl(metrics: Headline, variant: str) -> dict[str, float]:
    """KL of a variant by corpus, whatever the protocol of the corpus."""
    return {
        corpus: value
        for name, values in metrics["variants"][variant].items()
        if _is_kl(name) and isinstance(values, dict)
        for corpus, value in values.items()
    }


def _tags(metrics: Headline) -> list[str]:
    names = {name: None for values in metrics["variants"].values() for name in values if _is_kl(name)}
    return list(dict.fromkeys(parse(name).tag for name in names))


def _is_kl(name: str) -> bool:
    metric = parse(name)
    return metric.metric == "kl_mean" and not metric.part


def of_models(headlines: Mapping[str, Mapping[str, Json]], groups: Mapping[str, str]) -> dict[str, Json]:
    """Return the same of several models: of each, or of each group where they are many, the median KL of its variants.

    ``headlines``: model -> the content of its file; ``groups``: model -> its group.
    """
    medians = {
        model: float(value)
        for model, content in headlines.items()
        if isinstance(value := content.get("kl_median_of_all"), int | float)
    }
    fixed: dict[str, Json] = {"models": len(headlines)}
    if len(medians) < MOST_ROWS:
        return {**fixed, MEDIAN: medians}
    of_groups = _medians(medians, [groups[model] for model in medians])
    return {**fixed, MEDIAN: dict(list(of_groups.items())[: MOST_ROWS - 1])}
