"""Outputs of a study in data/: those that failed, and the removal of some."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hemorrhage.runtime import lacking
from hemorrhage.runtime.service import store
from hemorrhage.study import kinds
from hemorrhage.study import params as config
from hemorrhage.study.family import Family
from hemorrhage.study.kinds import KINDS
from hemorrhage.study.plan import DATA, PROVENANCE, REPORTS, Plan


def collect_garbage(family: Family, chosen: list[str]) -> list[Path]:
    """Remove outputs of the ``chosen`` kinds that no plan names, and parts that killed jobs left behind.

    DVC records directories whole: without this its lock would hold history instead of what was asked for. Nothing is
    removed that a screening may ask for.
    """
    removed = []
    for kind in chosen:
        keep = {
            DATA / kind / name / key
            for plan in family.plans.values()
            for name, key in (plan.possible_names(kind) if plan.is_open else plan.names(kind)).items()
        }
        for output in sorted((DATA / kind).glob("*/*")):
            if output not in keep:
                shutil.rmtree(output)
                removed.append(output)
        for name in sorted((DATA / kind).glob("*")):
            if not any(name.iterdir()):
                name.rmdir()
        # DVC wants to see every directory that a stage may write.
        (DATA / kind).mkdir(parents=True, exist_ok=True)
    return removed


def invalidate(family: Family, variants: list[str]) -> list[Path]:
    """Remove all outputs of a variant, so that the next run makes them again; of a server over HTTP, what it said.

    The variant ``base`` is the base model. In a study of several models it is a variant of each, or of one where it is
    written ``MODEL/VARIANT``. Raises config.ConfigError.
    """
    removed = []
    for variant in variants:
        model, _, name = variant.rpartition("/")
        if model and model not in family.plans:
            raise config.ConfigError(f"{model} is not a model of this study; models are {', '.join(family.plans)}")
        for plan in [family.plans[model]] if model else family.plans.values():
            removed += _invalidate(plan, name)
    if removed:
        (REPORTS / PROVENANCE).unlink(missing_ok=True)
    return removed


def _invalidate(plan: Plan, variant: str) -> list[Path]:
    servers = [server.label for server in plan.params.evaluate.engines.servers]
    if variant not in (kinds.BASE, *plan.variants, *servers):
        raise config.ConfigError(f"{variant} is not a variant; variants are {', '.join(['base', *plan.variants])}")
    removed = _remove_lacking(plan) if variant == kinds.BASE else []
    for kind in kinds.model_kinds():
        for name in plan.names(kind.name):
            of_server = kind.name == "served" and variant in servers and name.startswith(f"{variant}.")
            if kind.model(name) != variant and not of_server:
                continue
            output = Path(plan.manifest(kind.name, name)).parent
            if output.is_dir():
                shutil.rmtree(output)
                removed.append(output)
            store.remove(output)
    if removed:
        (plan.reports / PROVENANCE).unlink(missing_ok=True)
    return removed


def _remove_lacking(plan: Plan) -> list[Path]:
    """Remove the training that diverged, and all that says so in its place."""
    outputs = [Path(plan.manifest(kind, name)).parent for kind in KINDS for name in plan.names(kind)]
    removed = [output for output in outputs if lacking.reason(output) is not None]
    for output in removed:
        shutil.rmtree(output)
    return removed


def list_failures(family: Family) -> dict[str, str]:
    """Return why an output could not be made, by variant; the first reason of each. Of several models by
    ``MODEL/VARIANT``."""
    reasons: dict[str, str] = {}
    for name, plan in family.plans.items():
        reasons |= {f"{name}/{model}" if name else model: reason for model, reason in failures_of(plan).items()}
    return reasons


def failures_of(plan: Plan) -> dict[str, str]:
    """Return the same of one model."""
    reasons: dict[str, str] = {}
    for kind in kinds.model_kinds():
        for name in plan.names(kind.name):
            manifest, model = Path(plan.manifest(kind.name, name)), kind.model(name)
            if manifest.is_file() and model not in reasons:
                content = json.loads(manifest.read_text(encoding="utf-8"))
                reason = content.get("failure")
                if model == kinds.BASE and lacking.LACKS in content:
                    # Without a base its variants have no reasons of their own.
                    return {model: reason}
                reasons |= {model: reason} if reason else {}
    return reasons


def advice(family: Family, reasons: dict[str, str]) -> str:
    """Write a line for each variant that failed, and what to do."""
    lines = [f"{variant} failed: {reason}" for variant, reason in reasons.items()]
    models = sum(len(plan.variants) + 1 for plan in family.plans.values())
    count = f"{len(reasons)} of {models} models failed, reports/ holds the others"
    again = f"the next run makes them again after: hemorrhage invalidate {' '.join(reasons)}"
    return "\n".join([*lines, f"{count}; {again}"])
