"""Results that a working alteration would not give: what a reader has to look at before believing a number.

Each rule reads the rows (and of a checkpoint's manifest what it claims) and says in a sentence what it saw. A flag
is a suspicion with its evidence, not a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from hemorrhage.analyze.axes import failure, sweeps
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.protocol import strip_protocol
from hemorrhage.analyze.rows.diagnostics import layer_estimates
from hemorrhage.analyze.rows.language import ROUNDING
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.stored import Json

SMALLER = ("bits", "activation_bits", "cache_bits", "sparsity", "removed")
"""Axes of what compresses."""

OF_WEIGHTS = ("bits", "sparsity", "removed")
"""Those that cannot leave every weight as it was."""

SIGNIFICANT = 0.05

IDENTITIES = ("ratio", "removed")
"""Settings that ask for nothing where they are 0: such a point is the start of its curve, and meant to be the base."""

NO_OP = "no-op"
ZEROED = "zeroed layer"
ANOTHER_BASE = "made from another base"
UNKNOWN_BASE = "base unknown"
PUBLISHED = "read from a published file"

SILENT = 1e-3
"""A block whose write is so small against the state it is added to writes nothing."""

BROKEN_DB, GAP_DB = 1.0, 10.0
"""A block is broken where its error is as large as what it writes (SQNR below BROKEN_DB) while the middle one of the
layers does better by GAP_DB."""

MARGIN_DB = 12.0
"""Decibels that a block's output may lie below :func:`promised_sqnr`: a block is seven layers whose errors add up, and
groups are larger or values less normal than in the promise."""

COLLAPSED = 5.0
"""Nats of KL beyond which more damage is noise."""

BETTER = 0.01
"""Log-perplexity ratio below the base's that is worth a word."""


@dataclass(frozen=True)
class Flag:
    """A variant, the rule that it met, and what was seen, in one sentence."""

    variant: str
    rule: str
    evidence: str


def promised_sqnr(bits: float) -> float:
    """Compute the SQNR in dB that rounding to ``bits`` gives normal weights in groups of 64.

    Their range is about 4.8 standard deviations, cut into 2^bits - 1 steps, whose rounding error has a variance of a
    twelfth of a step's square.
    """
    return 20 * math.log10((2**bits - 1) / 4.8) + 10 * math.log10(12)


def find(inputs: Inputs, rows: pd.DataFrame, numbers: Numbers, corpora: Sequence[str]) -> list[Flag]:
    """Raise all flags, in the order of the variants; ``numbers``: of the same rows."""
    measured = [
        variant
        for variant in inputs.variants.values()
        if variant.name != BASE and failure(inputs, variant) is None and numbers.get(variant.name, "size_ratio")
    ]
    of_base = inputs.base.get("silent_blocks") or []
    flags = [Flag(BASE, ZEROED, f"Layer {_list(of_base)} of the base writes nothing.")] if of_base else []
    writes, sqnr = layer_estimates(rows, "write_norm"), layer_estimates(rows, "local_sqnr")
    for variant in measured:
        flags += _lineage(variant)
        flags += _unchanged(variant, numbers, corpora)
        flags += _silent_layers(variant, writes, of_base)
        flags += _broken_layers(variant, sqnr)
        flags += _scales(variant, sqnr)
    flags += _disorder(inputs, numbers, corpora, {flag.variant for flag in flags if flag.rule == NO_OP})
    flags += _better(rows)
    order = {name: index for index, name in enumerate(inputs.variants)}
    return sorted(flags, key=lambda flag: order[flag.variant])


def as_json(flags: Sequence[Flag]) -> list[dict[str, Json]]:
    """Return the content of flags.json."""
    return [asdict(flag) for flag in flags]


def noise_floor(numbers: Numbers, corpus: str) -> float:
    """Estimate the KL in nats where nothing was altered: of the A/A run, but no less than rounding leaves."""
    again = numbers.get(BASE, "kl_mean", corpus)
    return max(ROUNDING, again.value if again else 0.0)


def _unchanged(variant: Variant, numbers: Numbers, corpora: Sequence[str]) -> Iterator[Flag]:
    """Flag no-op compressions, and variants whose damage is not above the noise floor."""
    if any(variant.settings.get(name) == 0 for name in IDENTITIES):
        return
    kls = {corpus: numbers.get(variant.name, "kl_mean", corpus) for corpus in corpora}
    known = {corpus: kl for corpus, kl in kls.items() if kl}
    below = [corpus for corpus, kl in known.items() if kl.value <= noise_floor(numbers, corpus)]
    shown = ", ".join(
        f"{kl.value:.2g} on {corpus} (floor {noise_floor(numbers, corpus):.2g})" for corpus, kl in known.items()
    )
    # A published file may be the base itself in another format, which is no fault of it.
    claims = variant.axis in SMALLER and "lineage" not in variant.manifest
    changed = variant.manifest.get("changed")
    if known and len(below) == len(known):
        rule = NO_OP if claims else "not above the noise floor"
        what = f"it claims to compress ({variant.label})" if claims else "its damage is not significant"
        yield Flag(variant.name, rule, f"Its KL to the base is {shown}: {what}.")
    elif claims and variant.axis in OF_WEIGHTS and changed == 0:
        yield Flag(variant.name, NO_OP, f"It claims to compress ({variant.label}), and no weight differs.")
    elif variant.on != BASE and known:
        before = {corpus: numbers.get(variant.on, "kl_mean", corpus) for corpus in known}
        same = [corpus for corpus, kl in before.items() if kl and abs(kl.value - known[corpus].value) <= ROUNDING]
        if len(same) == len(known):
            yield Flag(variant.name, NO_OP, f"Its KL to the base is that of {variant.on}, which it alters: {shown}.")


def _lineage(variant: Variant) -> Iterator[Flag]:
    """Flag a published model that was made from another base, and what was said when it was read."""
    lineage = variant.manifest.get("lineage")
    if lineage and lineage["verdict"] == "other":
        differing, compared = lineage["differing"], lineage["compared"]
        evidence = (
            f"{len(differing)} of {compared} tensors that a compression leaves alone are not the base's, the first "
            f"{differing[0]}: it was made from another model, and its damage is also the difference of the two."
        )
        yield Flag(variant.name, ANOTHER_BASE, evidence)
    elif lineage and lineage["verdict"] == "unknown":
        yield Flag(variant.name, UNKNOWN_BASE, "None of its tensors that a compression leaves alone is in the base.")
    for note in variant.manifest.get("notes", []):
        yield Flag(variant.name, PUBLISHED, note)


def _layer_values(variant: Variant, table: pd.DataFrame) -> pd.Series:
    return table.loc[variant.name].dropna() if variant.name in table.index else pd.Series(dtype=float)


def _silent_layers(variant: Variant, writes: pd.DataFrame, of_base: Sequence[int]) -> Iterator[Flag]:
    """Flag blocks that add nothing to the residual stream, next to others that do, and that do so in the base.

    Expansion adds some on purpose.
    """
    values = _layer_values(variant, writes).drop(list(of_base), errors="ignore")
    silent = values[values < SILENT]
    if variant.axis == "added" or silent.empty or values.median() < 10 * SILENT:
        return
    yield Flag(
        variant.name,
        ZEROED,
        f"Layer {_list(silent.index)} writes {silent.max():.2g} of the state's norm, "
        f"the middle layer {values.median():.2g}.",
    )


def _broken_layers(variant: Variant, sqnr: pd.DataFrame) -> Iterator[Flag]:
    """Flag blocks whose error on clean input is as large as their output, next to others that work."""
    values = _layer_values(variant, sqnr)
    broken = values[values < min(BROKEN_DB, values.median() - GAP_DB)] if len(values) > 1 else values[:0]
    if broken.empty or variant.axis in ("added", "removed"):
        return
    yield Flag(
        variant.name,
        "broken layer",
        f"On clean input layer {_list(broken.index)} has an SQNR of {broken.max():.1f} dB, "
        f"the middle layer {values.median():.1f} dB.",
    )


def _scales(variant: Variant, sqnr: pd.DataFrame) -> Iterator[Flag]:
    """Flag quantized weights whose layers are far from what their bits promise: wrong or shuffled scales."""
    values = _layer_values(variant, sqnr)
    if "lineage" in variant.manifest:
        # A published file mixes types: the mean of their bits promises nothing of a block.
        return
    if variant.axis != "bits" or variant.on != BASE or values.empty or not 1 <= variant.severity <= 8:
        return
    promised = promised_sqnr(variant.severity)
    below = values[values < promised - MARGIN_DB]
    if 2 * len(below) > len(values):
        yield Flag(
            variant.name,
            "wrong scales",
            f"On clean input {len(below)} of {len(values)} layers have an SQNR below {promised - MARGIN_DB:.0f} dB "
            f"(the middle one {values.median():.1f}), where {variant.severity:g} bits promise about {promised:.0f}.",
        )


def _disorder(inputs: Inputs, numbers: Numbers, corpora: Sequence[str], idle: set[str]) -> Iterator[Flag]:
    """Flag variants that are hurt more than a harsher one on the same curve, on every corpus, beyond both intervals.

    Those that are ``idle``, no-ops, make nobody look worse.
    """
    for sweep in sweeps(inputs):
        active = [variant for variant in sweep.variants if variant.name not in idle]
        mild_first = sorted(active, key=lambda variant: variant.severity, reverse=sweep.axis.endswith("bits"))
        for index, variant in enumerate(mild_first):
            for harsher in mild_first[index + 1 :]:
                kls = _kls_in_disorder(numbers, variant, harsher, corpora)
                if kls is not None:
                    evidence = f"Its KL on {corpora[0]} is {kls[0]:.2g} nats, that of {harsher.name} {kls[1]:.2g}."
                    yield Flag(variant.name, "worse than a harsher variant", evidence)
                    break


def _kls_in_disorder(
    numbers: Numbers, variant: Variant, harsher: Variant, corpora: Sequence[str]
) -> tuple[float, float] | None:
    """Return the KLs of both on the first corpus, where the milder variant has surely more on every corpus."""
    pairs = [
        (numbers.get(variant.name, "kl_mean", corpus), numbers.get(harsher.name, "kl_mean", corpus))
        for corpus in corpora
    ]
    known = [(mild, harsh) for mild, harsh in pairs if mild and harsh]
    if not known or harsher.severity == variant.severity:
        return None
    if not all(mild.low > harsh.high and harsh.value < COLLAPSED for mild, harsh in known):
        return None
    return known[0][0].value, known[0][1].value


def _better(rows: pd.DataFrame) -> Iterator[Flag]:
    """Flag accuracy above, or perplexity below the base's by more than chance: test data may have leaked in."""
    significant = rows[(rows["status"] == "ok") & (rows["q"] < SIGNIFICANT)]
    columns = (significant[name] for name in ("variant", "metric", "dataset", "estimate", "q"))
    for variant, whole_metric, dataset, estimate, q in zip(*columns, strict=True):
        metric = strip_protocol(whole_metric)
        if metric in ("accuracy_change", "mean_accuracy_change") and estimate > 0:
            what = f"Its accuracy on {dataset} is {100 * estimate:.1f} points above the base's"
        elif metric == "ln_perplexity_ratio" and estimate < -BETTER:
            what = f"Its perplexity on {dataset} is {100 * (1 - math.exp(estimate)):.1f} % below the base's"
        else:
            continue
        yield Flag(variant, "better than the base", f"{what} (q = {q:.2g}): does it know the text?")


def _list(layers: Iterable[int]) -> str:
    return ", ".join(str(layer) for layer in layers)
