"""Cases that the predictor learns from and predicts: variants of params.yaml or of manifests, and their damage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd

from hemorrhage.analyze.doctor import features
from hemorrhage.analyze.doctor.features import COLUMNS, Alteration, Base
from hemorrhage.analyze.doctor.predictor import IDENTITY, OF_LAWS, RETENTION, TARGETS, UNCHANGED
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.compress.info import PREDICTED, MethodInfo

TRAINED_TOKENS = {"smollm2-135m-instruct": 2e12}
"""Tokens that a known model was trained on (SmolLM2: arXiv 2502.02737)."""

DIGITS = 6


@dataclass(frozen=True)
class Case:
    """A variant on a corpus: its identity, what laws read of it, the predictor's columns, and its measured damage, NaN
    where nothing was measured."""

    model: str
    variant: str
    sweep: str
    method: str
    family: str
    axis: str
    on: str
    corpus: str
    unchanged: bool
    in_layers: float
    trained_tokens: float
    bits: float
    share: float
    columns: dict[str, float]
    ln_perplexity_ratio: float = math.nan
    kl_mean: float = math.nan
    retention: float = math.nan

    def with_damage(self, ln_perplexity_ratio: float, kl_mean: float, retention: float = math.nan) -> Case:
        """Add what was measured."""
        return replace(self, ln_perplexity_ratio=ln_perplexity_ratio, kl_mean=kl_mean, retention=retention)

    def as_row(self) -> dict[str, str | bool | float]:
        """Return the row of a table."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "columns"}
        return {**plain, **self.columns}


def base_of(name: str, architecture: Mapping[str, Any], parameters: float, influence: Sequence[float] = ()) -> Base:
    """Describe the base model by its config.json. Raises KeyError where that lacks a decoder's sizes."""
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


def made_alteration(
    manifest: CheckpointManifest, layers: Mapping[str, Mapping[str, float]] | None = None
) -> Alteration:
    """Describe a variant that was made, by its manifest and layers.json."""
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
        kept_blocks=manifest.get("blocks"),
        layers=layers or None,
        second_order=bool(manifest.get("second_order")),
        unchanged=MethodInfo.of_manifest(manifest).unchanged,
    )


def planned_alteration(variant: Any, corpora: Sequence[str]) -> Alteration:
    """Describe a variant of params.yaml (hemorrhage.study.params.Variant) whose statistics would be of ``corpora``."""
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


def cases_of(
    alteration: Alteration, base: Base, parent: Alteration | None, base_nll: Mapping[str, float]
) -> list[Case]:
    """Make a case for each corpus, without damage; none where the family is not predicted."""
    if alteration.family not in PREDICTED or not math.isfinite(alteration.severity):
        return []
    return [
        Case(
            model=base.name,
            variant=alteration.name,
            sweep=alteration.name.partition("-")[0],
            method=alteration.method,
            family=alteration.family,
            axis=alteration.axis,
            on=alteration.on or "",
            corpus=corpus,
            unchanged=alteration.unchanged,
            in_layers=base.in_layers,
            trained_tokens=base.trained_tokens,
            bits=features.bits_of(alteration),
            share=alteration.severity if alteration.axis in ("sparsity", "removed") else math.nan,
            columns=features.columns_of(alteration, base, nll, corpus, parent),
        )
        for corpus, nll in base_nll.items()
    ]


def measured_cases(
    manifest: CheckpointManifest,
    layers: Mapping[str, Mapping[str, float]] | None,
    parent: CheckpointManifest | None,
    base: Base,
    damage: Mapping[str, Mapping[str, float]],
) -> list[Case]:
    """Make cases with damage. ``damage``: corpus -> nll, base_nll, kl, in nats per token."""
    above = None if parent is None else made_alteration(parent)
    base_nll = {corpus: nats["base_nll"] for corpus, nats in damage.items()}
    nats = {corpus: (each["nll"] - each["base_nll"], each["kl"]) for corpus, each in damage.items()}
    return [
        case.with_damage(*nats[case.corpus])
        for case in cases_of(made_alteration(manifest, layers), base, above, base_nll)
    ]


def table(cases: Sequence[Case]) -> pd.DataFrame:
    """Put cases into all columns of the predictor's rows, numbers to six digits."""
    rows = pd.DataFrame(
        [case.as_row() for case in cases], columns=[*IDENTITY, UNCHANGED, *OF_LAWS, *COLUMNS, *TARGETS, RETENTION]
    )
    numbers = [*OF_LAWS, *COLUMNS, *TARGETS, RETENTION]
    rows[numbers] = rows[numbers].map(lambda value: value if math.isnan(value) else float(f"{value:.{DIGITS}g}"))
    return rows
