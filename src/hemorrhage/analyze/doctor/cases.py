"""Rows that the predictor learns from and is asked about: variants of params.yaml, of manifests, and what they did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from hemorrhage.analyze.doctor import features
from hemorrhage.analyze.doctor.features import COLUMNS, Alteration, Base
from hemorrhage.analyze.doctor.predictor import IDENTITY, OF_LAWS, RETENTION, TARGETS, UNCHANGED
from hemorrhage.compress.info import PREDICTED, MethodInfo

TRAINED_TOKENS = {"smollm2-135m-instruct": 2e12}
"""Tokens that a known model was trained on (SmolLM2: arXiv 2502.02737)."""

DIGITS = 6


def base_of(name: str, architecture: Mapping[str, Any], parameters: float, influence: Sequence[float] = ()) -> Base:
    """The base model from its config.json. Raises KeyError where that lacks a decoder's sizes."""
    width, blocks = int(architecture["hidden_size"]), int(architecture["num_hidden_layers"])
    embeddings = int(architecture.get("vocab_size", 0)) * width
    tied = bool(architecture.get("tie_word_embeddings", True))
    return Base(
        name=name,
        parameters=parameters,
        in_layers=max(parameters - embeddings * (1 if tied else 2), 1.0),
        blocks=blocks,
        width=width,
        trained_tokens=TRAINED_TOKENS.get(name, math.nan),
        vocabulary=int(architecture["vocab_size"]),
        influence=tuple(influence),
    )


def altered(manifest: Mapping[str, Any], layers: Mapping[str, Mapping[str, float]] | None) -> Alteration:
    """A variant that was made, from its manifest and layers.json."""
    calibration = manifest.get("calibration")
    severity = manifest.get("severity")
    return Alteration(
        name=manifest["variant"],
        method=manifest["method"],
        family=manifest["family"],
        axis=manifest.get("axis") or "",
        severity=math.nan if severity is None else float(severity),
        settings=manifest.get("settings") or {},
        calibrated_on=calibration["corpora"] if calibration else None,
        on=manifest.get("on"),
        made=manifest,
        layers=layers or None,
        second_order=bool(manifest.get("second_order")),
        unchanged=MethodInfo.of_manifest(manifest).unchanged,
    )


def planned(variant: Any, corpora: Sequence[str]) -> Alteration:
    """A variant of params.yaml (hemorrhage.study.params.Variant) whose statistics would be of ``corpora``."""
    return Alteration(
        name=variant.name,
        method=variant.method,
        family=variant.family,
        axis=variant.settings.axis,
        severity=float(variant.settings.severity),
        settings=variant.settings.model_dump(mode="json"),
        calibrated_on=corpora if variant.settings.statistics else None,
        on=variant.on,
        second_order=variant.settings.second_order,
        unchanged=variant.info.unchanged,
    )


def asked(
    alteration: Alteration, base: Base, parent: Alteration | None, base_nll: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A row for each corpus, without targets; none where the family is not predicted."""
    if alteration.family not in PREDICTED or not math.isfinite(alteration.severity):
        return []
    about = {
        "model": base.name,
        "variant": alteration.name,
        "sweep": alteration.name.partition("-")[0],
        "method": alteration.method,
        "family": alteration.family,
        "axis": alteration.axis,
        "on": alteration.on or "",
        UNCHANGED: alteration.unchanged,
        "in_layers": base.in_layers,
        "trained_tokens": base.trained_tokens,
        "bits": features.bits_of(alteration),
        "share": alteration.severity if alteration.axis in ("sparsity", "removed") else math.nan,
    }
    return [
        {**about, "corpus": corpus, **features.of(alteration, base, nll, corpus, parent)}
        for corpus, nll in base_nll.items()
    ]


def measured_rows(
    manifest: Mapping[str, Any],
    layers: Mapping[str, Mapping[str, float]] | None,
    parent: Mapping[str, Any] | None,
    base: Base,
    damage: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Rows with targets. ``damage``: corpus -> nll, base_nll, kl, in nats per token."""
    above = None if parent is None else altered(parent, None)
    rows = asked(altered(manifest, layers), base, above, {name: found["base_nll"] for name, found in damage.items()})
    for row in rows:
        found = damage[row["corpus"]]
        row |= {"ln_perplexity_ratio": found["nll"] - found["base_nll"], "kl_mean": found["kl"], RETENTION: math.nan}
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """All columns of the predictor's rows, numbers to six digits."""
    found = pd.DataFrame(rows, columns=[*IDENTITY, UNCHANGED, *OF_LAWS, *COLUMNS, *TARGETS, RETENTION])
    numbers = [*OF_LAWS, *COLUMNS, *TARGETS, RETENTION]
    found[numbers] = found[numbers].map(lambda value: value if math.isnan(value) else float(f"{value:.{DIGITS}g}"))
    return found
