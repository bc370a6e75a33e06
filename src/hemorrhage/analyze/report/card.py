"""The model card of a variant: what was done to the model and the damage that was measured, for people and the hub."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hemorrhage.analyze.budget import DAMAGE_KINDS
from hemorrhage.analyze.protocol import strip_protocol
from hemorrhage.compress.info import FAMILIES
from hemorrhage.runtime.artifact import MANIFEST

SHOWN = {
    "perplexity": "Perplexity",
    "ln_perplexity_ratio": "ln of perplexity over the base's",
    "kl_mean": "KL to the base, nats per token",
    "same_top1": "Same most likely token as the base",
    "mean_accuracy": "Mean accuracy over tasks",
    "mean_accuracy_change": "Change of mean accuracy",
    "mean_flips": "Answers that flip",
    "accuracy": "Accuracy",
}
"""Metrics of the card, in its order."""


@dataclass(frozen=True)
class Study:
    """What a study says of its variants: its rows, its provenance.json and its recommendation.json."""

    rows: pd.DataFrame
    provenance: dict[str, Any]
    recommendation: dict[str, Any]


NO_STUDY = Study(pd.DataFrame(), {}, {})


def card(folder: Path, reports: Path, name: str) -> str:
    """README.md of an exported variant, called ``name``.

    ``folder`` is its checkpoint. ``reports`` holds the study; its numbers stand in the card when the study measured
    exactly this checkpoint, and where it did not, the card says so.
    """
    provenance = _json(reports / "provenance.json")
    measured = _identity(folder) in provenance.get("inputs", {}).get("checkpoints", [])
    file = reports / "hemorrhage.parquet"
    study = NO_STUDY
    if measured and file.is_file():
        study = Study(pd.read_parquet(file), provenance, _json(reports / "recommendation.json"))
    return written(name, _json(folder / MANIFEST), _identity(folder), _base(folder, provenance), study)


def written(name: str, manifest: Mapping[str, Any], identity: str, base: dict[str, Any], study: Study) -> str:
    """The card of a variant that is called ``name``: YAML metadata, then text.

    ``manifest`` and ``identity`` (``<variant>/<address>``) are its checkpoint's, ``base`` is the ``model`` of
    params.yaml.
    """
    from huggingface_hub import EvalResult, ModelCardData

    variant = manifest.get("variant", name)
    rows = _rows(study.rows, variant)
    family = FAMILIES.get(manifest.get("family", ""))
    percent = 100 * study.provenance.get("spec", {}).get("confidence", 0.95)
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Damage against the base model",
            dataset_type=row["dataset"].replace(" ", "_"),
            dataset_name=row["dataset"],
            metric_type=strip_protocol(row["metric"]),
            metric_name=row["metric"],
            metric_value=float(f"{row['estimate']:.6g}"),
        )
        for row in rows
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[tag for tag in ("compressed", manifest.get("family"), manifest.get("method")) if tag],
        base_model=base.get("id"),
        base_model_relation=family.relation or None if family and base.get("id") else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {name}", *_made(manifest, base)]
    parts += _damage(rows, percent, study.recommendation.get("variants", {}).get(variant))
    parts += _provenance(identity, manifest, study.provenance if rows else {})
    return "\n\n".join(parts) + "\n"


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _identity(folder: Path) -> str:
    """``<name>/<address>``, as provenance.json writes it."""
    return "/".join(folder.resolve().parts[-2:])


def _rows(rows: pd.DataFrame, variant: str) -> list[dict[str, Any]]:
    """The rows that measure a variant, in the order of SHOWN."""
    if rows.empty:
        return []
    mine = rows[(rows["variant"] == variant) & (rows["status"] == "ok") & (rows["family"] != "decode")]
    chosen = mine[mine["metric"].map(strip_protocol).isin(SHOWN)]
    order = list(SHOWN)
    return sorted(chosen.to_dict("records"), key=lambda row: order.index(strip_protocol(row["metric"])))


def _base(folder: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """Which model was altered: the ``model`` of params.yaml, as the base's manifest has it."""
    kept = folder.resolve().parents[2] / "base" if len(folder.resolve().parents) > 2 else folder
    for identity in provenance.get("inputs", {}).get("base", []):
        found = _json(kept / identity / MANIFEST).get("model")
        if found:
            return dict(found)
    return {}


def _made(manifest: Mapping[str, Any], base: dict[str, Any]) -> list[str]:
    if not manifest:
        return ["Nothing is known of how this checkpoint was made."]
    of = base.get("id") or base.get("name")
    about = [f"{of or 'A model'}, altered: {manifest.get('label') or manifest.get('method', '')}."]
    if manifest.get("on"):
        about.append(f"On top of {manifest['on']}.")
    if manifest.get("theoretical"):
        about.append(f"Theoretical ({manifest['theoretical']}).")
    texts = manifest.get("calibration")
    facts = {
        "Method": manifest.get("method"),
        "Settings": json.dumps(manifest.get("settings", {}), sort_keys=True),
        "Calibration statistics": manifest.get("statistics") or "none",
        "Calibrated on": f"{', '.join(texts['corpora'])}, {texts['tokens']} tokens" if texts else None,
        "Size": f"{manifest['disk_bytes'] / 1e6:.1f} MB as the study stored it" if "disk_bytes" in manifest else None,
        "Stored bits per parameter": _rounded(manifest.get("effective_bits")),
        "Share of zeros": _rounded(manifest.get("sparsity")),
        "Seed": manifest.get("seed"),
    }
    known = "\n".join(f"- {key}: {value}" for key, value in facts.items() if value is not None)
    return [" ".join(about), known]


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def _damage(rows: list[dict[str, Any]], percent: float, verdict: dict[str, Any] | None) -> list[str]:
    if not rows:
        return ["## Damage", "Not measured: no study lies beside this checkpoint that evaluated it."]
    lines = [f"| metric | on | value | {percent:g} % interval | n |", "|---|---|---|---|---|"]
    for row in rows:
        interval = "" if math.isnan(row["low"]) else f"{row['low']:.4g} to {row['high']:.4g}"
        name = SHOWN[strip_protocol(row["metric"])]
        lines.append(f"| {name} | {row['dataset']} | {row['estimate']:.4g} | {interval} | {row['n']} |")
    found = ["## Damage", "Everything is paired with the base model on the same windows and items.", "\n".join(lines)]
    if verdict:
        checks = [
            f"- {DAMAGE_KINDS[check['kind']].name} on {check['dataset']}: {check['answer']}"
            + (f" (upper bound {check['bound']:.4g}, limit {check['limit']:g})" if "bound" in check else "")
            for check in verdict["checks"]
        ]
        inside = "inside" if verdict["inside"] else "not inside"
        found += [f"The variant is {inside} the budget of its study:", "\n".join(checks)]
    return found


def _provenance(identity: str, manifest: Mapping[str, Any], provenance: dict[str, Any]) -> list[str]:
    facts = {
        "Checkpoint": identity if manifest else None,
        "Report": provenance.get("address"),
        "Machine and libraries": json.dumps(manifest.get("environment", {}), sort_keys=True) if manifest else None,
    }
    known = "\n".join(f"- {key}: `{value}`" for key, value in facts.items() if value)
    return ["## Provenance", known] if known else []
