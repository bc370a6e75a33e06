"""What the analyze step reads: the outputs of the steps before it, as they lie on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import load_file

from hemorrhage.compress.info import MethodInfo
from hemorrhage.runtime.artifact import read_manifest

BASE = "base"
SIBLING = "sibling_model"
"""What the other model of the family is called, whose texts are decoded beside the base's."""

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Output:
    """An output directory: its manifest, the tables that it holds, by file name, what it measured of cost, and the
    features of its texts, ``<data set>.human`` and ``<data set>.strategy.<name>`` [texts, width]."""

    manifest: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    cost: dict[str, Any] | None = None
    features: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

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
    layers: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)
    """The checkpoint's layers.json, where there is one."""

    @property
    def identity(self) -> str:
        """What the points of its damage curve have in common: equal on one curve, different on two."""
        return str(self.manifest.get("identity", self.curve))

    @property
    def info(self) -> MethodInfo:
        """What is known of its method."""
        return MethodInfo.of_manifest(self.manifest)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of its method."""
        return self.manifest.get("settings") or {}

    @property
    def is_shuffled(self) -> bool:
        """Whether it is the control of a method: the same work with shuffled information."""
        return bool(self.settings.get("shuffled"))

    @property
    def is_control(self) -> bool:
        """Whether it is a control: shuffled, or with something random in the place of a choice."""
        return bool(self.manifest.get("is_control"))

    @property
    def failure(self) -> str | None:
        """Why there is no checkpoint of this variant."""
        return self.manifest.get("failure")


@dataclass(frozen=True)
class Inputs:
    """Everything the analysis is made of. ``variants`` begins with the base and keeps the order given; the sibling,
    which is no variant, is not among them. ``configs`` are the checkpoints' config.json."""

    base: dict[str, Any]
    variants: dict[str, Variant]
    evaluations: dict[str, Output]
    decodes: dict[str, Output]
    harness: dict[str, Output]
    code_tasks: dict[str, Output]
    directories: dict[str, list[str]]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    corrections: dict[str, Output] = field(default_factory=dict)
    sibling: Sibling | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    """The base model's config.json, where there is one."""
    calibration: Tokens = field(default_factory=lambda: np.empty((0, 0), dtype=np.int32), repr=False)
    """The calibration windows, int32 ``[windows, length]``; none where nothing was calibrated."""
    texts: dict[str, Tokens] = field(default_factory=dict, repr=False)
    """Corpus -> the evaluated windows, int32 ``[windows, window]``."""
    others: dict[str, dict[str, Output]] = field(default_factory=dict, repr=False)
    """Kind -> its outputs with every table, of kinds that this module knows nothing of."""


@dataclass(frozen=True)
class Sibling:
    """The base or the aligned model of the base model's family, and its decoding sweep."""

    variant: Variant
    is_aligned: bool
    decoded: Output


TABLES = {
    "evaluations": ("tokens.parquet", "windows.parquet", "items.parquet", "diagnostics.parquet"),
    "decodes": ("generations.parquet", "human.parquet"),
    "harness": ("items.parquet",),
    "code_tasks": ("programs.parquet",),
    "corrections": ("tokens.parquet",),
}
"""Kind of what is measured on a model -> the tables that are read of it."""

READ_APART = ("base", "sibling_models", "checkpoints", "calibrations", "references")
"""Kinds of which something else is read than tables."""

Folders = Mapping[str, Sequence[Path]]
"""Kind of output -> the folders that were given."""


def read(given: Folders, is_aligned: bool = False) -> Inputs:
    """Read all inputs. ``is_aligned``: whether the other model of the family, where there is one, is the aligned one.

    Raises ValueError where two directories hold the same variant, a variant's checkpoint was not given, or evaluations
    follow different protocols.
    """
    (base,), checkpoints = given["base"], given.get("checkpoints", [])
    manifests = {name: output.manifest for name, output in _outputs(checkpoints, ()).items()}
    layers = {name: _json(path / "layers.json") for name, path in zip(manifests, checkpoints, strict=True)}
    base_manifest = read_manifest(base)
    variants = {BASE: _base_variant(base_manifest)}
    variants.update({name: _variant(name, manifest, layers[name]) for name, manifest in manifests.items()})
    measured = {kind: _outputs(given.get(kind, []), files) for kind, files in TABLES.items()}
    its_texts = measured["decodes"].pop(SIBLING, None)
    others = {kind: _outputs(paths, None) for kind, paths in given.items() if kind not in (*TABLES, *READ_APART)}
    for name in (name for outputs in (measured | others).values() for name in outputs):
        if name not in variants:
            raise ValueError(f"{name} was measured, but no directory of checkpoints is of this variant")
    _check_protocols(measured["evaluations"])
    return Inputs(
        base=base_manifest,
        variants=variants,
        evaluations=measured["evaluations"],
        decodes=measured["decodes"],
        harness=measured["harness"],
        code_tasks=measured["code_tasks"],
        corrections=measured["corrections"],
        directories={
            kind: [_identity(path) for path in given.get(kind, [])]
            for kind in (
                "base",
                "checkpoints",
                *TABLES,
                *others,
                *(["sibling_models"] if given.get("sibling_models") else []),
            )
        },
        configs=_configs(checkpoints),
        sibling=_sibling(given.get("sibling_models", []), its_texts, is_aligned),
        architecture=_json(base / "config.json"),
        others=others,
        **_tokens(given.get("calibrations", []), given.get("references", [])),
    )


def _sibling(folders: Sequence[Path], decoded: Output | None, is_aligned: bool) -> Sibling | None:
    if not folders or decoded is None:
        return None
    return Sibling(_base_variant(read_manifest(folders[0]), SIBLING, "the other model"), is_aligned, decoded)


def _check_protocols(evaluations: dict[str, Output]) -> None:
    """Numbers of one corpus are compared, so they must be of the same windows of the same text."""
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, output in evaluations.items():
        for corpus, facts in output.manifest.get("corpora", {}).items():
            other, known = first.setdefault(corpus, (name, facts))
            for key in ("protocol", "sha256"):
                if facts[key] != known[key]:
                    raise ValueError(f"{corpus}: {name} has {key} {facts[key]!r}, but {other} has {known[key]!r}")


def model_name(base: dict[str, Any]) -> str:
    """What the base model is called, by its manifest."""
    model = base.get("model", {})
    name = model.get("name") or model.get("id") or Path(model.get("path", "base model")).name
    return str(name)


def _identity(directory: Path) -> str:
    """``<name>/<address>``: says which output it is, without saying where this machine keeps it."""
    return "/".join(directory.resolve().parts[-2:])


def _outputs(directories: Sequence[Path], files: Sequence[str] | None) -> dict[str, Output]:
    """The outputs of some folders with those of ``files`` that are there; None: with every table."""
    found: dict[str, Output] = {}
    for directory in directories:
        manifest = read_manifest(directory)
        name = manifest.get("variant", directory.resolve().parent.name)
        if name in found:
            raise ValueError(f"{directory}: variant {name} was given twice")
        there = sorted(path.name for path in directory.glob("*.parquet"))
        present = there if files is None else [file for file in files if file in there]
        cost, features = directory / "cost.json", directory / "features.safetensors"
        found[name] = Output(
            manifest,
            {file: pd.read_parquet(directory / file) for file in present},
            json.loads(cost.read_text(encoding="utf-8")) if cost.is_file() else None,
            load_file(features) if features.is_file() else {},
        )
    return found


def _configs(checkpoints: Sequence[Path]) -> dict[str, dict[str, Any]]:
    files = {read_manifest(path)["variant"]: path / "config.json" for path in checkpoints}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def _tokens(calibrations: Sequence[Path], references: Sequence[Path]) -> dict[str, Any]:
    windows = [load_file(path / "tokens.safetensors")["tokens"] for path in calibrations]
    texts = {name: text for path in references for name, text in load_file(path / "windows.safetensors").items()}
    return {"texts": texts, **({"calibration": np.concatenate(windows)} if windows else {})}


def _json(file: Path) -> dict[str, Any]:
    """The content of a file that need not be there."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _variant(name: str, manifest: dict[str, Any], layers: dict[str, dict[str, float]]) -> Variant:
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
        layers=layers,
    )


def _base_variant(manifest: dict[str, Any], name: str = BASE, label: str = "base model") -> Variant:
    return Variant(
        name=name,
        sweep=name,
        family=name,
        method=name,
        curve="",
        label=label,
        axis="",
        severity=float("nan"),
        seed=None,
        on=BASE,
        manifest=manifest,
    )
