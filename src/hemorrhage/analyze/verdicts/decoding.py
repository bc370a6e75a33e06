"""What the decoding sweep says beside its rows: the rules' verdicts, steadiness, survival, what to decode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.rows import stability
from hemorrhage.analyze.rows.decoding import greedy_survival, measure_texts, outcomes
from hemorrhage.analyze.rows.survival import Survival
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts import choice, published, signatures
from hemorrhage.analyze.verdicts.shipping import Judged


@dataclass(frozen=True)
class Findings:
    """What the decoding sweep says beside its rows: the rules' verdicts, whether the aligned model is steadier (None:
    no second model was decoded), and which variants the analysis would decode."""

    signatures: list[signatures.Verdict]
    stability: dict[str, stability.Stability] | None
    choices: list[choice.Choice]
    survival: dict[str, dict[str, Survival]]


def find(inputs: Inputs, thresholds: Sequence[CurveEntry], verdicts: Sequence[Judged], spec: Spec) -> Findings:
    """Everything of the decoding sweep that is no row."""
    return Findings(
        signatures=signatures.judge(inputs, spec),
        stability=compared(inputs, spec),
        choices=choice.choose(inputs, thresholds, verdicts),
        survival=survivals(inputs, spec),
    )


def as_json(found: Findings) -> dict[str, Any]:
    """The content of decoding.json: numbers that are not known are null."""
    return {
        "signatures": [_finite(asdict(verdict)) for verdict in found.signatures],
        "published": published.said(),
        "stability": None
        if found.stability is None
        else {name: {**_finite(asdict(one)), "verdict": one.verdict} for name, one in found.stability.items()},
        "choices": [asdict(one) for one in found.choices],
    }


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in fields.items()
    }


def compared(inputs: Inputs, spec: Spec) -> dict[str, stability.Stability] | None:
    """Data set -> the aligned model's steadiness against the base model's, on the closed-ended tasks of both."""
    sibling, own = inputs.sibling, inputs.decodes.get(BASE)
    if sibling is None or own is None or own.failure is not None or sibling.decoded.failure is not None:
        return None
    mine, other = measure_texts(own), measure_texts(sibling.decoded)
    sides = (mine, other) if sibling.is_aligned else (other, mine)
    found = {}
    for dataset in dict.fromkeys(mine[mine["task"] == "closed_ended"]["dataset"]):
        first, second = (outcomes(side[side["dataset"] == dataset], "accuracy") for side in sides)
        items = first.index.intersection(second.index)
        shared = [name for name in first.columns if name in second.columns]
        one = stability.compare(
            first.loc[items, shared].to_numpy(), second.loc[items, shared].to_numpy(), str(dataset), spec
        )
        if one is not None:
            found[str(dataset)] = one
    return found


def survivals(inputs: Inputs, spec: Spec) -> dict[str, dict[str, Survival]]:
    """Data set -> variant -> the curve of its greedy texts against the base's."""
    own = inputs.decodes.get(BASE)
    if own is None or own.failure is not None:
        return {}
    base = measure_texts(own)
    found: dict[str, dict[str, Survival]] = {}
    for name, output in inputs.decodes.items():
        if name == BASE or output.failure is not None:
            continue
        texts = measure_texts(output)
        for dataset in dict.fromkeys(base[base["task"] == "open_ended"]["dataset"]):
            theirs, mine = (side[side["dataset"] == dataset] for side in (base, texts))
            curve = greedy_survival(theirs, mine, str(dataset), spec)
            if curve is not None:
                found.setdefault(str(dataset), {})[name] = curve
    return found
