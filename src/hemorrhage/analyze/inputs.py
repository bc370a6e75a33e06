"""What the analyze step reads: the outputs of the steps before it, as they lie on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import load_file

from hemorrhage.analyze.manifests import CheckpointManifest, Cost, MeasurementManifest
from hemorrhage.bracket.content import Bracket
from hemorrhage.bracket.content import read as read_bracket
from hemorrhage.compress.info import MethodInfo
from hemorrhage.runtime.artifact import read_manifest

BASE = "base"
SIBLING = "sibling_model"
"""What the other model of the family is called, whose texts are decoded next to the base's."""

Tokens = npt.NDArray[np.int32]

ModelConfig = dict[str, Any]
"""A config.json of transformers, whose keys are the architecture's."""

Layers = dict[str, dict[str, float]]
"""The content of layers.json: name of a layer -> what the compress step measured on it."""


@dataclass(frozen=True)
class Output:
    """The output of a step that measured a model.

    ``tables``: by file name. ``cost``: the content of cost.json. ``features``: of its texts, ``<data set>.human`` and
    ``<data set>.strategy.<name>``, float32 ``[texts, width]``.
    """

    manifest: MeasurementManifest
    tables: dict[str, pd.DataFrame]
    cost: Cost | None = None
    features: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @property
    def failure(self) -> str | None:
        """Why the output could not be made."""
        return self.manifest.get("failure")

    def protocol(self, dataset: str) -> str:
        """Return the protocol under which a data set was measured."""
        protocol = self.manifest["protocol"]
        return protocol if isinstance(protocol, str) else protocol[dataset]


@dataclass(frozen=True)
class Variant:
    """What a row says about the model it measures; ``on`` is the variant that was altered further, or the base.

    ``layers``: the checkpoint's layers.json, where it has one.
    """

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
    manifest: CheckpointManifest = field(repr=False)
    layers: Layers = field(default_factory=dict, repr=False)

    @classmethod
    def of_manifest(cls, manifest: CheckpointManifest, layers: Layers) -> Variant:
        """Return the variant that a checkpoint's manifest describes."""
        severity = manifest.get("severity")
        return cls(
            name=manifest["variant"],
            sweep=manifest.get("sweep", ""),
            family=manifest.get("family", ""),
            method=manifest.get("method", ""),
            curve=manifest.get("curve") or "",
            label=manifest.get("label") or manifest["variant"],
            axis=manifest.get("axis") or "",
            severity=float("nan") if severity is None else float(severity),
            seed=manifest.get("seed"),
            on=manifest.get("on") or BASE,
            manifest=manifest,
            layers=layers,
        )

    @classmethod
    def unaltered(cls, manifest: CheckpointManifest, name: str, label: str) -> Variant:
        """Return a model that the study does not alter: the base, or its sibling."""
        return cls(name, name, name, name, "", label, "", float("nan"), None, BASE, manifest)

    @property
    def identity(self) -> str:
        """What the points of its damage curve have in common: equal on one curve, different on two."""
        return str(self.manifest.get("identity", self.curve))

    @property
    def info(self) -> MethodInfo:
        """The description of its method."""
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
        """Whether it is a control: shuffled, with something random instead of a choice, or a repetition."""
        return bool(self.manifest.get("is_control"))

    @property
    def is_redrawn(self) -> bool:
        """Whether it repeats another variant with another calibration set."""
        return bool(self.manifest.get("redrawn"))

    @property
    def failure(self) -> str | None:
        """Why there is no checkpoint of this variant."""
        return self.manifest.get("failure")


@dataclass(frozen=True)
class Sibling:
    """The base or the aligned model of the base model's family, and its decoding sweep."""

    variant: Variant
    is_aligned: bool
    decoded: Output


@dataclass(frozen=True)
class Training:
    """A training of a model of the study. ``kind``: text, sft or dpo; ``weights`` without embeddings; ``operations``:
    floating-point; losses in nats a token, of dpo a pair. The curve: ``loss`` ``at`` so many tokens, thinned, and
    ``heldout`` ``measured_at`` so many."""

    name: str
    kind: str
    model_type: str
    weights: int
    tokens: int
    operations: float
    train_loss: float
    heldout_loss: float
    tokens_per_second: float
    seed: int
    at: list[int] = field(repr=False)
    loss: list[float] = field(repr=False)
    measured_at: list[int] = field(repr=False)
    heldout: list[float] = field(repr=False)


@dataclass(frozen=True)
class Inputs:
    """Everything that the analysis reads.

    ``variants`` begins with the base and keeps the order given; the sibling model is no variant. ``directories``: kind
    of output -> ``<name>/<address>`` of each. ``served``: engine -> what was measured of each variant in it.
    ``configs``: the checkpoints' config.json; ``architecture``: the base model's, where it has one. ``calibration``:
    the calibration windows, int32 ``[windows, length]``, none where nothing was calibrated. ``texts``: corpus -> the
    evaluated windows, int32 ``[windows, window]``. ``others``: kind -> its outputs with every table, of kinds that this
    module does not know. ``bracket``: what a screening added, ``confirmations``: what was measured again of what could
    ship.
    """

    base: CheckpointManifest
    variants: dict[str, Variant]
    evaluations: dict[str, Output]
    decodes: dict[str, Output]
    harness: dict[str, Output]
    code_tasks: dict[str, Output]
    directories: dict[str, list[str]]
    configs: dict[str, ModelConfig] = field(default_factory=dict, repr=False)
    corrections: dict[str, Output] = field(default_factory=dict)
    served: dict[str, dict[str, Output]] = field(default_factory=dict)
    sibling: Sibling | None = None
    architecture: ModelConfig = field(default_factory=dict)
    calibration: Tokens = field(default_factory=lambda: np.empty((0, 0), dtype=np.int32), repr=False)
    texts: dict[str, Tokens] = field(default_factory=dict, repr=False)
    others: dict[str, dict[str, Output]] = field(default_factory=dict, repr=False)
    bracket: Bracket | None = None
    confirmations: dict[str, Output] = field(default_factory=dict)
    trainings: list[Training] = field(default_factory=list)


TABLES = {
    "evaluations": ("tokens.parquet", "windows.parquet", "items.parquet", "diagnostics.parquet"),
    "decodes": ("generations.parquet", "human.parquet"),
    "harness": ("items.parquet", "metrics.parquet"),
    "code_tasks": ("programs.parquet",),
    "corrections": ("tokens.parquet", "texts.parquet"),
    "confirmations": ("tokens.parquet", "windows.parquet", "items.parquet"),
}
"""Kind of what is measured on a model -> the tables that are read of it."""

SIBLINGS = "sibling_models"
"""Kind of output of the sibling model."""

BRACKETS = "brackets"
"""Kind of output of what a screening added."""

TRAININGS = "trainings"
"""Kind of output of a model that the pipeline trained."""

POINTS = 300
"""Points of a curve that are kept, about."""

SERVED = "served"
"""Kind of output of a variant in an engine, of which there may be several."""

WITHOUT_TABLES = ("base", SIBLINGS, "checkpoints", "calibrations", "references", BRACKETS, SERVED, TRAININGS)
"""Kinds that are not tables of a variant each."""

Folders = Mapping[str, Sequence[Path]]
"""Kind of output -> the folders that were given."""


def read(folders: Folders, is_aligned: bool = False) -> Inputs:
    """Read all inputs. ``is_aligned``: whether the other model of the family, where there is one, is the aligned one.

    Raises ValueError where two directories hold the same variant, a variant's checkpoint was not given, or evaluations
    follow different protocols.
    """
    (base,), checkpoints = folders["base"], folders.get("checkpoints", [])
    base_manifest = _checkpoint_manifest(base)
    variants = {BASE: Variant.unaltered(base_manifest, BASE, "base model"), **_variants(checkpoints)}
    measured = {kind: _outputs(folders.get(kind, []), files) for kind, files in TABLES.items()}
    decoded_sibling = measured["decodes"].pop(SIBLING, None)
    others = {kind: _outputs(paths, None) for kind, paths in folders.items() if kind not in (*TABLES, *WITHOUT_TABLES)}
    served = _served(folders.get(SERVED, []))
    for name in (name for outputs in (measured | others | served).values() for name in outputs):
        if name not in variants:
            raise ValueError(f"{name} was measured, but no directory of checkpoints is of this variant")
    for evaluated in (measured["evaluations"], *served.values()):
        _check_protocols(evaluated)
    optional = [kind for kind in (SIBLINGS, BRACKETS, SERVED, TRAININGS) if folders.get(kind)]
    listed = ("base", "checkpoints", *TABLES, *others, *optional)
    return Inputs(
        base=base_manifest,
        variants=variants,
        evaluations=measured["evaluations"],
        decodes=measured["decodes"],
        harness=measured["harness"],
        code_tasks=measured["code_tasks"],
        corrections=measured["corrections"],
        directories={kind: [_identity(path) for path in folders.get(kind, [])] for kind in listed},
        configs=_configs(checkpoints),
        served=served,
        sibling=_sibling(folders.get(SIBLINGS, []), decoded_sibling, is_aligned),
        architecture=_json(base / "config.json"),
        calibration=_calibration(folders.get("calibrations", [])),
        texts=_texts(folders.get("references", [])),
        others=others,
        confirmations=measured["confirmations"],
        bracket=next(map(read_bracket, folders.get(BRACKETS, [])), None),
        trainings=[_training(folder) for folder in folders.get(TRAININGS, [])],
    )


def model_name(base: CheckpointManifest) -> str:
    """Return what the base model is called, by its manifest."""
    model = base.get("model") or {}
    return model.get("name") or model.get("id") or model.get("recipe") or Path(model.get("path", "base model")).name


def _training(folder: Path) -> Training:
    manifest, curve = read_manifest(folder), pd.read_parquet(folder / "curve.parquet")
    thinned = curve.iloc[:: max(1, len(curve) // POINTS)]
    measured = curve[curve["heldout_loss"].notna()]
    read_as = (
        "model_type",
        "weights",
        "tokens",
        "operations",
        "train_loss",
        "heldout_loss",
        "tokens_per_second",
        "seed",
    )
    return Training(
        name=folder.resolve().parent.name,
        kind=manifest["spec"]["tune"]["kind"] if "tune" in manifest["spec"] else "text",
        **{key: manifest[key] for key in read_as},
        at=thinned["tokens"].tolist(),
        loss=thinned["loss"].tolist(),
        measured_at=measured["tokens"].tolist(),
        heldout=measured["heldout_loss"].tolist(),
    )


def _checkpoint_manifest(folder: Path) -> CheckpointManifest:
    return cast(CheckpointManifest, read_manifest(folder))


def _variants(checkpoints: Sequence[Path]) -> dict[str, Variant]:
    variants: dict[str, Variant] = {}
    for folder in checkpoints:
        variant = Variant.of_manifest(_checkpoint_manifest(folder), _json(folder / "layers.json"))
        if variant.name in variants:
            raise ValueError(f"{folder}: variant {variant.name} was given twice")
        variants[variant.name] = variant
    return variants


def _sibling(folders: Sequence[Path], decoded: Output | None, is_aligned: bool) -> Sibling | None:
    if not folders or decoded is None:
        return None
    variant = Variant.unaltered(_checkpoint_manifest(folders[0]), SIBLING, "the other model")
    return Sibling(variant, is_aligned, decoded)


def _check_protocols(evaluations: dict[str, Output]) -> None:
    """Numbers of one corpus are compared, so they must be of the same windows of the same text."""
    first: dict[str, str] = {}
    for name, output in evaluations.items():
        for corpus, stated in output.manifest.get("corpora", {}).items():
            other = first.setdefault(corpus, name)
            expected = evaluations[other].manifest["corpora"][corpus]
            for key, value, wanted in (
                ("protocol", stated["protocol"], expected["protocol"]),
                ("sha256", stated["sha256"], expected["sha256"]),
            ):
                if value != wanted:
                    raise ValueError(f"{corpus}: {name} has {key} {value!r}, but {other} has {wanted!r}")


def _identity(directory: Path) -> str:
    """``<name>/<address>``: says which output it is, without saying where this machine keeps it."""
    return "/".join(directory.resolve().parts[-2:])


def _outputs(directories: Sequence[Path], files: Sequence[str] | None) -> dict[str, Output]:
    """Read the outputs of some folders with those of ``files`` that they have; None: with every table."""
    outputs: dict[str, Output] = {}
    for directory in directories:
        manifest = cast(MeasurementManifest, read_manifest(directory))
        name = manifest.get("variant", directory.resolve().parent.name)
        if name in outputs:
            raise ValueError(f"{directory}: variant {name} was given twice")
        present = sorted(path.name for path in directory.glob("*.parquet"))
        tables = present if files is None else [file for file in files if file in present]
        cost, features = directory / "cost.json", directory / "features.safetensors"
        outputs[name] = Output(
            manifest,
            {file: pd.read_parquet(directory / file) for file in tables},
            json.loads(cost.read_text(encoding="utf-8")) if cost.is_file() else None,
            load_file(features) if features.is_file() else {},
        )
    return outputs


def _served(folders: Sequence[Path]) -> dict[str, dict[str, Output]]:
    """Read what was measured in engines: engine -> variant -> its output."""
    by_engine: dict[str, list[Path]] = {}
    for folder in folders:
        manifest = cast(MeasurementManifest, read_manifest(folder))
        by_engine.setdefault(manifest["engine"]["name"], []).append(folder)
    return {engine: _outputs(paths, ("tokens.parquet",)) for engine, paths in by_engine.items()}


def _configs(checkpoints: Sequence[Path]) -> dict[str, ModelConfig]:
    files = {read_manifest(path)["variant"]: path / "config.json" for path in checkpoints}
    return {name: _json(file) for name, file in files.items() if file.is_file()}


def _calibration(folders: Sequence[Path]) -> Tokens:
    windows = [load_file(path / "tokens.safetensors")["tokens"] for path in folders]
    return np.concatenate(windows) if windows else np.empty((0, 0), dtype=np.int32)


def _texts(folders: Sequence[Path]) -> dict[str, Tokens]:
    return {name: text for path in folders for name, text in load_file(path / "windows.safetensors").items()}


def _json(file: Path) -> Any:
    """Read a file that need not be there."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
