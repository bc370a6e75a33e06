"""What is known of compression methods besides what they compute: families, and each method's description.

The compress step writes a method's description into the manifest of every variant. The analysis reads it there, so
that it knows no method by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True)
class Family:
    """Methods that alter the same part of a model.

    ``relation``: what the Hugging Face hub calls the relation to the base model, where it has a word. ``combines``: an
    alteration of another variant is a point of a grid of two axes, so the same alteration of the base is needed, too.
    ``predicted``: its damage is predicted before it is measured.
    """

    title: str
    relation: str = ""
    combines: bool = False
    predicted: bool = True


FAMILIES = {
    "weight_quantization": Family("Quantized weights", relation="quantized", combines=True),
    "activation_quantization": Family("Quantized activations and caches", relation="quantized"),
    "equivalent_transforms": Family("Equivalent transforms", predicted=False),
    "cache_eviction": Family("Evicted caches", predicted=False),
    "unstructured_pruning": Family("Pruned weights", combines=True),
    "structured_pruning": Family("Pruned widths", combines=True),
    "depth_pruning": Family("Depth pruning", combines=True),
    "low_rank": Family("Low rank", combines=True),
    "depth_expansion": Family("Layer expansion"),
    "moe": Family("Experts and routing"),
    "perturbation": Family("Noise on weights", predicted=False),
    "published": Family("Published by others", relation="quantized", predicted=False),
    "recovery": Family("Recovery training", relation="finetune", predicted=False),
}
"""Family -> what is known of it, in the order of the report. A family is a folder of compress/methods."""

FAMILY_TITLES = {name: family.title for name, family in FAMILIES.items()}

PREDICTED = tuple(name for name, family in FAMILIES.items() if family.predicted)
"""Families whose damage is predicted."""

GRADIENTS = "Gradient-aware pruning"
LAYERWISE = "Layer-wise sparsity"
SCALES = "Dynamic quantization scaling"
COMPENSATION = "Error compensation"
TRAINING = "Recovery training"

ARMS = (GRADIENTS, LAYERWISE, SCALES, COMPENSATION, TRAINING)
"""Kinds of mitigation, in the order of the report."""


@dataclass(frozen=True)
class Paper:
    """Where a method comes from: its authors and its arXiv number."""

    authors: str
    arxiv: str = ""


@dataclass(frozen=True)
class Comparison:
    """A plain method that a method improves on: the variants of both that are compared, as one kind of mitigation.

    Both sides are equal in the settings ``same`` and alter the same model. ``treated`` and ``untreated`` name the
    values that a setting of the method's and of the plain method's variant may have; a setting that a method has not
    excludes nothing. In ``changed`` both sides differ. With ``equal_bytes`` they are equally large.
    """

    arm: str
    plain: str = ""
    """The plain method; where it is empty, the plain side is the variant that was altered further."""
    same: tuple[str, ...] = ()
    treated: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    untreated: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    changed: tuple[str, ...] = ()
    equal_bytes: bool = False


@dataclass(frozen=True)
class Spacing:
    """Values of a method's severity that are worth running: from ``low`` to ``high`` in ``step``."""

    low: float
    high: float
    step: float
    whole: bool = False

    def values(self) -> list[float | int]:
        """Return all of them, ascending."""
        number = round((self.high - self.low) / self.step)
        values = [round(self.low + index * self.step, 4) for index in range(number + 1)]
        return [int(value) for value in values] if self.whole else values


@dataclass(frozen=True)
class MethodInfo:
    """What people and the analysis know of a method.

    ``title``: its name in plain words. ``summary``: a line for tables. ``examples``: settings that are valid for a
    small Llama, the first of them the plain use of the method. ``storage``: what its weights are stored as; see
    ``models.engines.STORED``. ``improves_on``: what its variants are compared with. ``values``: what a sweep could
    try next. ``unchanged``: the model computes what it computed before. ``by_blocks``: the severity is rounded to
    whole blocks. ``spares_blocks``: some blocks are left alone, so that a model can refuse a high severity.
    """

    title: str
    summary: str = ""
    papers: tuple[Paper, ...] = ()
    examples: tuple[Mapping[str, Any], ...] = ({},)
    storage: tuple[str, ...] = ("plain",)
    improves_on: tuple[Comparison, ...] = ()
    values: Spacing | None = None
    unchanged: bool = False
    by_blocks: bool = False
    spares_blocks: bool = False

    def manifest(self) -> dict[str, Any]:
        """Return what a variant's manifest says of its method: all but what documents it."""
        documents = ("summary", "papers", "examples", "storage")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in documents}

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> MethodInfo:
        """Return the description in a variant's manifest; without one, nothing but the method's name is known."""
        return _READER.validate_python(manifest.get("method_info") or {"title": manifest.get("method") or ""})


_READER = TypeAdapter(MethodInfo)
