"""Results of the decoding sweep that are no rows: the rules' verdicts, steadiness, survival, what to decode."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import pandas as pd

from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.rows import stability
from hemorrhage.analyze.rows.decoding import CLOSED, greedy_survival, measure_texts, outcomes
from hemorrhage.analyze.rows.findings import KINDS, careful
from hemorrhage.analyze.rows.floors import floors
from hemorrhage.analyze.rows.survival import Survival
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stored import Json
from hemorrhage.analyze.verdicts import beside, choice, published, signatures, words
from hemorrhage.analyze.verdicts.shipping import Verdict


@dataclass(frozen=True)
class LeftOut:
    """What is compared no further: a variant on a data set, or some ``strategies`` of it, and why."""

    variant: str
    dataset: str
    strategies: list[str]
    reason: str


@dataclass(frozen=True)
class Findings:
    """The rules' verdicts, whether the aligned model is steadier (None: no second model was decoded), the variants that
    the analysis would decode, how long greedy texts stay those of the base, what is compared no further and why, the
    words that variants write more often, and some texts side by side."""

    signatures: list[signatures.RuleTest]
    stability: dict[str, stability.Stability] | None
    choices: list[choice.Choice]
    survival: dict[str, dict[str, Survival]]
    left_out: list[LeftOut] = field(default_factory=list)
    raised: list[words.RaisedWord] = field(default_factory=list)
    beside: list[beside.Beside] = field(default_factory=list)


def find(inputs: Inputs, thresholds: Sequence[CurveEntry], verdicts: Sequence[Verdict], spec: Spec) -> Findings:
    """Derive everything of the decoding sweep that is no row."""
    return Findings(
        signatures=signatures.judge(inputs, spec),
        stability=compare_stability(inputs, spec),
        choices=choice.choose(inputs, thresholds, verdicts),
        survival=survivals(inputs, spec),
        left_out=left_out(inputs, spec),
        raised=raised(inputs, spec),
        beside=[
            shown
            for name, dataset, theirs, ours in pairs(inputs)
            for shown in beside.side_by_side(name, dataset, theirs, ours)
        ],
    )


def as_json(findings: Findings) -> dict[str, Json]:
    """Return the content of decoding.json: numbers that are not known are null."""
    compared = findings.stability
    return {
        "signatures": [_with_nulls(asdict(verdict)) for verdict in findings.signatures],
        "published": published.statements(),
        "stability": None
        if compared is None
        else {name: {**_with_nulls(asdict(each)), "verdict": each.verdict} for name, each in compared.items()},
        "left_out": [asdict(each) for each in findings.left_out],
        "raised_words": [asdict(each) for each in findings.raised],
        "side_by_side": [asdict(each) for each in findings.beside],
        "choices": [asdict(each) for each in findings.choices],
    }


def _with_nulls(fields: Mapping[str, Json]) -> dict[str, Json]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in fields.items()
    }


def compare_stability(inputs: Inputs, spec: Spec) -> dict[str, stability.Stability] | None:
    """Compare, by data set, the aligned model's steadiness with the base model's, on closed-ended tasks of both."""
    sibling, of_base = inputs.sibling, inputs.decodes.get(BASE)
    if sibling is None or of_base is None or of_base.failure is not None or sibling.decoded.failure is not None:
        return None
    base, other = measure_texts(of_base), measure_texts(sibling.decoded)
    spec = careful(spec, base[base["task"] == CLOSED]["dataset"].nunique())
    sides = (base, other) if sibling.is_aligned else (other, base)
    compared = {}
    for dataset in dict.fromkeys(base[base["task"] == CLOSED]["dataset"]):
        texts = [side[side["dataset"] == dataset] for side in sides]
        if not all(map(len, texts)):
            continue
        first, second = (outcomes(side, "accuracy") for side in texts)
        items = first.index.intersection(second.index)
        # What is no evidence of one of them compares nothing.
        evidence = [floors(side, side, spec, is_base=True).evidence(list(first.columns)) for side in texts]
        shared = [name for name in evidence[0] if name in evidence[1] and name in second.columns]
        result = stability.compare(
            first.loc[items, shared].to_numpy(), second.loc[items, shared].to_numpy(), str(dataset), spec
        )
        if result is not None:
            compared[str(dataset)] = result
    return compared


def pairs(inputs: Inputs) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """Yield variant, data set, and the measured texts of the base and of the variant on it."""
    of_base = inputs.decodes.get(BASE)
    if of_base is None or of_base.failure is not None:
        return
    base = dict(iter(measure_texts(of_base).groupby("dataset", sort=False)))
    for name, output in inputs.decodes.items():
        if name == BASE or output.failure is not None:
            continue
        for dataset, texts in measure_texts(output).groupby("dataset", sort=False):
            if dataset in base:
                yield name, str(dataset), base[dataset], texts


def survivals(inputs: Inputs, spec: Spec) -> dict[str, dict[str, Survival]]:
    """Measure, by data set and variant, how long greedy texts stay those of the base."""
    curves: dict[str, dict[str, Survival]] = {}
    for name, dataset, theirs, ours in pairs(inputs):
        curve = None if ours["task"].iloc[0] == CLOSED else greedy_survival(theirs, ours, dataset, spec)
        if curve is not None:
            curves.setdefault(dataset, {})[name] = curve
    return curves


def left_out(inputs: Inputs, spec: Spec) -> list[LeftOut]:
    """Say what of closed-ended decoding is compared no further."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    closed = [pair for pair in pairs(inputs) if pair[3]["task"].iloc[0] == CLOSED]
    for name, dataset, theirs, ours in closed:
        known = floors(ours, theirs, spec, tests=len(closed))
        if known.lost:
            reasons[name, dataset, known.lost] = []
        for strategy, reason in known.left_out.items():
            # Of the base's answers: the same for every variant.
            reasons.setdefault(("all variants", dataset, reason), [])
            if strategy not in reasons["all variants", dataset, reason]:
                reasons["all variants", dataset, reason].append(strategy)
    return [LeftOut(name, dataset, each, reason) for (name, dataset, reason), each in reasons.items()]


def raised(inputs: Inputs, spec: Spec) -> list[words.RaisedWord]:
    """Name the words that variants write more often; corrected for all that is said of decoding."""
    compared = list(pairs(inputs))
    return [
        replace(word, p=min(len(KINDS) * len(compared) * word.p, 1.0))
        for name, dataset, theirs, ours in compared
        for word in words.raised_words(name, dataset, theirs, ours, careful(spec, len(compared)))
    ]
