"""The models of a study: each as it was analyzed alone, with its group and what is known of the model itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from hemorrhage.analyze import study, unmade
from hemorrhage.analyze.axes import Sweep, sweeps
from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.study import Study

LOSS_OF = "loss on "
"""How the name of a corpus' loss begins among the facts of a model."""


class Description(TypedDict):
    """A model as params.yaml describes it: ``factors``: listed value by key, ``group``: all of them but the seed."""

    group: str
    factors: dict[str, str | float | int]


@dataclass(frozen=True)
class Model:
    """A model of the study and its analysis."""

    name: str
    group: str
    factors: Mapping[str, str | float | int]
    study: Study

    @property
    def facts(self) -> dict[str, float]:
        """What is known of the model before anything is done to it: parameters, its perplexity, how it was trained."""
        manifest = self.study.inputs.base
        facts = {"parameters": float(manifest.get("parameters") or math.nan)}
        for corpus in self.study.corpora:
            estimate = self.study.numbers.get(BASE, "perplexity", corpus)
            if estimate is not None:
                facts[f"{LOSS_OF}{corpus} (nats)"] = math.log(estimate.value)
        return {name: value for name, value in facts.items() if math.isfinite(value)}

    @property
    def loss(self) -> float:
        """Nats per token before anything is done to it, the mean over corpora."""
        losses = [value for name, value in self.facts.items() if name.startswith(LOSS_OF)]
        return float(np.mean(losses)) if losses else math.nan

    def sweeps(self) -> list[Sweep]:
        """List the sweeps over the base model."""
        return [sweep for sweep in sweeps(self.study.inputs) if sweep.on == BASE]

    def curves(self) -> Iterator[CurveEntry]:
        """Yield the curves of sweeps over the base model, on every corpus."""
        return (entry for entry in self.study.thresholds if entry.on == BASE)

    def mean(self, variant: str, metric: str) -> float:
        """Return a metric's mean over corpora; NaN where it is not known on each."""
        estimates = [self.study.numbers.get(variant, metric, corpus) for corpus in self.study.corpora]
        values = [estimate.value for estimate in estimates if estimate is not None]
        return float(np.mean(values)) if values and len(values) == len(estimates) else math.nan


@dataclass(frozen=True)
class Gap:
    """A model that could not be made, and why."""

    model: str
    group: str
    reason: str


def read(reports: Path, described: Mapping[str, Description]) -> list[Model]:
    """Read the models of a study from ``reports/<model>``, those that could be made."""
    return [
        Model(name, content["group"], content["factors"], study.read(reports / name))
        for name, content in described.items()
        if unmade.reason(reports / name) is None
    ]


def missing(reports: Path, described: Mapping[str, Description]) -> list[Gap]:
    """List the models of a study that could not be made."""
    reasons = {name: unmade.reason(reports / name) for name in described}
    return [Gap(name, described[name]["group"], reason) for name, reason in reasons.items() if reason is not None]


def groups(models: Sequence[Model]) -> dict[str, list[Model]]:
    """Return the models by group, both in the order of params.yaml."""
    grouped: dict[str, list[Model]] = {}
    for model in models:
        grouped.setdefault(model.group, []).append(model)
    return grouped
