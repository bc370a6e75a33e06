"""What the analyze step reads: the outputs of the steps before it, as they lie on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from hemorrhage.artifact import read_manifest

BASE = "base"


@dataclass(frozen=True)
class Output:
    """An output directory: its manifest, the tables that it holds, by file name, and what it measured of cost."""

    manifest: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    cost: dict[str, Any] | None = None

    @property
    def failure(self) -> str | None:
        """Why the output could not be made."""
        return self.manifest.get("failure")


@dataclass(frozen=True)
class Variant:
    """What a row says about the model it measures; ``on`` is the variant that was altered further, or the base."""

    name: str
    sweep: str
    family: str
    method: str
    curve: str
    label: str
    axis: str
    severity: float
    seed: int | None
    on: str
    manifest: dict[str, Any] = field(repr=False)

    @property
    def failure(self) -> str | None:
        """Why there is no checkpoint of this variant."""
        return self.manifest.get("failure")


@dataclass(frozen=True)
class Inputs:
    """Everything the analysis is made of. ``variants`` begins with the base and keeps the order given; ``configs`` are
    their checkpoints' config.json."""

    base: dict[str, Any]
    variants: dict[str, Variant]
    evaluations: dict[str, Output]
    decodes: dict[str, Output]
    harness: dict[str, Output]
    programs: dict[str, Output]
    directories: dict[str, list[str]]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    corrections: dict[str, Output] = field(default_factory=dict)


EVALUATION = ("tokens.parquet", "windows.parquet", "items.parquet", "inside.parquet")


def read(
    base: Path,
    checkpoints: Sequence[Path],
    evaluations: Sequence[Path],
    decodes: Sequence[Path],
    harness: Sequence[Path] = (),
    programs: Sequence[Path] = (),
    corrections: Sequence[Path] = (),
) -> Inputs:
    """Read all inputs.

    Raises ValueError where two directories hold the same variant, a variant's checkpoint was not given, or evaluations
    follow different protocols.
    """
    manifests = {name: output.manifest for name, output in _outputs(checkpoints, ()).items()}
    base_manifest = read_manifest(base)
    variants = {BASE: _base_variant(base_manifest)}
    variants.update({name: _variant(name, manifest) for name, manifest in manifests.items()})
    found = Inputs(
        base=base_manifest,
        variants=variants,
        evaluations=_outputs(evaluations, EVALUATION),
        decodes=_outputs(decodes, ("generations.parquet",)),
        harness=_outputs(harness, ("items.parquet",)),
        programs=_outputs(programs, ("programs.parquet",)),
        corrections=_outputs(corrections, ("tokens.parquet",)),
        directories={
            "base": [_identity(base)],
            "checkpoints": [_identity(path) for path in checkpoints],
            "evaluations": [_identity(path) for path in evaluations],
            "decodes": [_identity(path) for path in decodes],
            "harness": [_identity(path) for path in harness],
            "programs": [_identity(path) for path in programs],
            "corrections": [_identity(path) for path in corrections],
        },
        configs=_configs(checkpoints),
    )
    for kind in (found.evaluations, found.decodes, found.harness, found.programs, found.corrections):
        for name in kind:
            if name not in variants:
                raise ValueError(f"{name} was measured, but no --checkpoints directory is of this variant")
    _check_protocols(found.evaluations)
    return found


def _check_protocols(evaluations: dict[str, Output]) -> None:
    """Numbers of one corpus are compared, so they must be of the same windows of the same text."""
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, output in evaluations.items():
        for corpus, facts in output.manifest.get("corpora", {}).items():
            other, known = first.setdefault(corpus, (name, facts))
            for key in ("protocol", "sha256"):
                if facts[key] != known[key]:
                    raise ValueError(f"{corpus}: {name} has {key} {facts[key]!r}, but {other} has {known[key]!r}")


def _identity(directory: Path) -> str:
    """``<name>/<address>``: says which output it is, without saying where this machine keeps it."""
    return "/".join(directory.resolve().parts[-2:])


def _outputs(directories: Sequence[Path], files: Sequence[str]) -> dict[str, Output]:
    found: dict[str, Output] = {}
    for directory in directories:
        manifest = read_manifest(directory)
        name = manifest.get("variant", directory.resolve().parent.name)
        if name in found:
            raise ValueError(f"{directory}: variant {name} was given twice")
        present = [file for file in files if (directory / file).is_file()]
        cost = directory / "cost.json"
        found[name] = Output(
            manifest,
            {file: pd.read_parquet(directory / file) for file in present},
            json.loads(cost.read_text(encoding="utf-8")) if cost.is_file() else None,
        )
    return found


def _configs(checkpoints: Sequence[Path]) -> dict[str, dict[str, Any]]:
    files = {read_manifest(path)["variant"]: path / "config.json" for path in checkpoints}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def _variant(name: str, manifest: dict[str, Any]) -> Variant:
    severity = manifest.get("severity")
    return Variant(
        name=name,
        sweep=manifest.get("sweep", ""),
        family=manifest.get("family", ""),
        method=manifest.get("method", ""),
        curve=manifest.get("curve") or "",
        label=manifest.get("label") or name,
        axis=manifest.get("axis") or "",
        severity=float("nan") if severity is None else float(severity),
        seed=manifest.get("seed"),
        on=manifest.get("on") or BASE,
        manifest=manifest,
    )


def _base_variant(manifest: dict[str, Any]) -> Variant:
    return Variant(
        name=BASE,
        sweep=BASE,
        family=BASE,
        method=BASE,
        curve="",
        label="base model",
        axis="",
        severity=float("nan"),
        seed=None,
        on=BASE,
        manifest=manifest,
    )
