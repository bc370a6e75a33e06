"""Made-up evidence whose verdicts are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs, Output, Sibling, Variant
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.analyze.rows.results import Results
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts import claims
from hemorrhage.analyze.verdicts.claims import Assessment
from hemorrhage.analyze.verdicts.evidence import Evidence

CORPORA = ("prose", "code")
WINDOWS = 40
ERROR = 0.02


def row(variant: str, metric: str, dataset: str, value: float, low: float, high: float, **more: str) -> dict[str, Any]:
    nothing = {"p": 1.0, "q": 1.0, "mde": 0.0, "n": WINDOWS, "protocol": "", "status": "ok", "family": "", "method": ""}
    return {
        **nothing,
        "variant": variant,
        "metric": metric,
        "dataset": dataset,
        "estimate": value,
        "low": low,
        "high": high,
        **more,
    }


class Study:
    """Evidence, variant by variant."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.variants = {BASE: variant(BASE, BASE, BASE)}
        self.rows = [row(BASE, "mean_accuracy", "all tasks", 0.8, 0.7, 0.9)]
        self.replicates: dict[tuple[str, str], np.ndarray] = {}
        self.outputs: dict[str, Output] = {}
        self.decodes: dict[str, Output] = {}
        self.sibling: Sibling | None = None
        self.losses: dict[str, tuple[float, np.ndarray, int]] = {}

    def add(
        self,
        one: Variant,
        damage: float | dict[str, float],
        attention: float | None = None,
        lost: float | None = None,
        growth: float = 0.0,
    ) -> None:
        self.variants[one.name] = one
        for corpus in CORPORA:
            value = damage[corpus] if isinstance(damage, dict) else damage
            self.replicates[one.name, corpus] = value + self.rng.normal(0, ERROR, 300)
            ends = (value - 2 * ERROR, value + 2 * ERROR)
            self.rows.append(row(one.name, "ln_perplexity_ratio[w128]", corpus, value, *ends))
            self.rows.append(row(one.name, "kl_mean[w128]", corpus, value, *ends))
        table = {}
        if attention is not None:
            table["diagnostics.parquet"] = pd.concat(
                [
                    pd.DataFrame({"metric": metric, "layer": 0, "head": 0, "window": range(4), "value": by_window})
                    for metric, by_window in (
                        ("attention_js", attention * np.array([0.9, 1.0, 1.0, 1.1])),
                        ("log_amplification", growth + np.array([-0.01, 0.0, 0.0, 0.01])),
                    )
                ]
            )
        self.outputs[one.name] = Output({}, table)
        if lost is not None:
            self.losses[one.name] = (lost, lost + self.rng.normal(0, 0.01, 300), 80)

    def evidence(self, thresholds: list[CurveEntry] | None = None, model: str = "m") -> Evidence:
        table = pd.DataFrame(self.rows)
        found = Inputs(
            {"model": {"name": model}}, self.variants, self.outputs, self.decodes, {}, {}, {}, sibling=self.sibling
        )
        results = Results(
            table,
            self.replicates,
            dict.fromkeys(CORPORA, WINDOWS),
            [],
            divergences=self.replicates,
            task_losses=self.losses,
            trials=[],
        )
        spec = Spec(300, 0.95, 0, calibration=("prose",))
        return Evidence(found, results, Numbers(table), thresholds or [], spec, list(CORPORA))

    def verdict(self, key: str, thresholds: list[CurveEntry] | None = None, model: str = "m") -> str:
        return self.judge(key, thresholds, model).finding.verdict

    def judge(self, key: str, thresholds: list[CurveEntry] | None = None, model: str = "m") -> Assessment:
        return next(claim for claim in claims.judge(self.evidence(thresholds, model)) if claim.key == key)


CALIBRATED = ("wanda", "gptq")


def variant(
    name: str,
    family: str,
    method: str,
    severity: float = 0.0,
    size: float = 1.0,
    calibrated_on: str = "",
    **settings: Any,
) -> Variant:
    manifest: CheckpointManifest = {
        "settings": settings,
        "size_ratio": size,
        "statistics": "of the base model" if method in CALIBRATED else "",
        "calibrated": method in CALIBRATED,
        "is_control": settings.get("order") == "random",
    }
    if "bits" in settings:
        manifest["layer_bits"] = settings["bits"] + 0.3
    if calibrated_on:
        manifest["calibration"] = {"corpora": [calibrated_on], "tokens": 512, "experts_without_tokens": []}
    return Variant(name, method, family, method, "", name, "", severity, 0, BASE, manifest)
