"""Results of the decoding sweep that are no rows: the rules' verdicts, steadiness, survival, what to decode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.rows import stability
from hemorrhage.analyze.rows.decoding import greedy_survival, measure_texts, outcomes
from hemorrhage.analyze.rows.survival import Survival
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stored import Json
from hemorrhage.analyze.verdicts import choice, published, signatures
from hemorrhage.analyze.verdicts.shipping import Verdict


@dataclass(frozen=True)
class Findings:
    """The rules' verdicts, whether the aligned model is steadier (None: no second model was decoded), the variants that
    the analysis would decode, and how long greedy texts stay those of the base."""

    signatures: list[signatures.RuleTest]
    stability: dict[str, stability.Stability] | None
    choices: list[choice.Choice]
    survival: dict[str, dict[str, Survival]]


def find(inputs: Inputs, thresholds: Sequence[CurveEntry], verdicts: Sequence[Verdict], spec: Spec) -> Findings:
    """Derive everything of the decoding sweep that is no row."""
    return Findings(
        signatures=signatures.judge(inputs, spec),
        stability=compare_stability(inputs, spec),
        choices=choice.choose(inputs, thresholds, verdicts),
        survival=survivals(inputs, spec),
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
    sides = (base, other) if sibling.is_aligned else (other, base)
    compared = {}
    for dataset in dict.fromkeys(base[base["task"] == "closed_ended"]["dataset"]):
        first, second = (outcomes(side[side["dataset"] == dataset], "accuracy") for side in sides)
        items = first.index.intersection(second.index)
        shared = [name for name in first.columns if name in second.columns]
        result = stability.compare(
            first.loc[items, shared].to_numpy(), second.loc[items, shared].to_numpy(), str(dataset), spec
        )
        if result is not None:
            compared[str(dataset)] = result
    return compared


def survivals(inputs: Inputs, spec: Spec) -> dict[str, dict[str, Survival]]:
    """Measure, by data set and variant, how long greedy texts stay those of the base."""
    of_base = inputs.decodes.get(BASE)
    if of_base is None or of_base.failure is not None:
        return {}
    base = measure_texts(of_base)
    curves: dict[str, dict[str, Survival]] = {}
    for name, output in inputs.decodes.items():
        if name == BASE or output.failure is not None:
            continue
        texts = measure_texts(output)
        for dataset in dict.fromkeys(base[base["task"] == "open_ended"]["dataset"]):
            theirs, mine = (side[side["dataset"] == dataset] for side in (base, texts))
            curve = greedy_survival(theirs, mine, str(dataset), spec)
            if curve is not None:
                curves.setdefault(str(dataset), {})[name] = curve
    return curves
