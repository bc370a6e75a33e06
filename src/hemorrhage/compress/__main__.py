"""Step ``compress``: one altered model.

python -m hemorrhage.compress OUT --variant V --base DIR [--parent DIR] [--calibration DIR] [--gradients DIR...]
    --spec JSON

``spec``: ``sweep``, ``method`` and its ``settings`` (see hemorrhage.compress.method), ``seed``, ``on``, the variant
that is altered further (``--parent``), or null for the base, and ``calibration_seed``, where ``--calibration`` is
another draw than the study's own.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import Alteration, Context, Json, Method, Settings, describe
from hemorrhage.compress.suitability import check_config, check_model
from hemorrhage.models.engine_table import SEMI_STRUCTURED
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import failure, failure_recorded, read_manifest, write_manifest, writing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hemorrhage.calibrate.reader import Statistics
    from hemorrhage.compress.checks.fidelity import EquivalentTransform

BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")
"""The first number in a module's name, which is that of its block."""

MASKS = "masks: no engine today stores or computes less for zeros"

TWO_OF_FOUR = math.log2(math.comb(4, 2)) / 4
"""Bits a weight of a mask of 2:4."""


@dataclass(frozen=True)
class Spec:
    """The step's ``--spec``."""

    sweep: str
    method: str
    settings: Mapping[str, Json]
    seed: int
    on: str | None = None
    calibration_seed: int | None = None


class CalibrationSource(TypedDict):
    """The calibration set of a variant: corpora, tokens, the draw's seed, and experts that none of its tokens takes."""

    corpora: list[str]
    tokens: int
    seed: int
    experts_without_tokens: list[str]


class Measured(TypedDict):
    """What a variant's manifest says of its checkpoint, besides the entries of the method."""

    statistics: str
    theoretical: str
    mask_bits: float | None
    disk_bytes: int
    stored_bytes: int
    effective_bits: float
    layer_bits: float
    size_ratio: float
    parameters: int
    layers: int
    sparsity: float
    changed: float
    equivalent_transform: EquivalentTransform
    calibration: CalibrationSource | None


def compress(
    out: Path,
    variant: str,
    base: Path,
    parent: Path | None,
    calibration: Path | None,
    gradients: list[Path],
    spec: Mapping[str, Any],
) -> None:
    """Write the altered model into ``out``; where that fails, a manifest that says why."""
    request = Spec(**spec)
    method = method_of(request.method)
    settings = method.settings.model_validate(request.settings)
    identity = {
        "variant": variant,
        "sweep": request.sweep,
        "seed": request.seed,
        "on": request.on,
        **describe(method, settings),
        "curve": ", ".join(filter(None, [settings.curve, request.on and f"on {request.on}"])),
        **_redrawn(settings, request.calibration_seed),
    }
    from hemorrhage.compress.progress import keep_progress
    from hemorrhage.models.reload import FreshProcess

    with (
        failure_recorded(out, **identity),
        keep_progress(out) as progress,
        FreshProcess() as fresh,
        writing(out) as scratch,
    ):
        reason = parent and failure(parent)
        if reason:
            raise ValueError(f"{request.on} was not made: {reason}")
        context = Context(seed=request.seed, progress=progress, base=base)
        inputs = Inputs(base, parent, calibration, gradients)
        measured, entries = _compress(scratch, method, settings, inputs, context)
        fresh.verify(scratch, base)
        write_manifest(scratch, **{**identity, **measured, **entries})


def _redrawn(settings: Settings, seed: int | None) -> Mapping[str, Json]:
    """Return what a manifest says of a variant that repeats another one with another calibration set.

    As a control it is measured to compare with, and never picked.
    """
    if seed is None:
        return {}
    return {"redrawn": True, "is_control": True, "label": f"{settings.label}, calibration seed {seed}"}


@dataclass(frozen=True)
class Inputs:
    """Folders that the step reads: the base model, the variant that is altered further, statistics and gradients."""

    base: Path
    parent: Path | None
    calibration: Path | None
    gradients: list[Path]

    @property
    def altered(self) -> Path:
        """The model that is altered."""
        return self.parent or self.base

    def of_parent(self, key: str) -> Any:
        """Return an entry of the parent's manifest; None without a parent or without the entry."""
        return read_manifest(self.parent).get(key) if self.parent else None


def _compress(  # noqa: PLR0915 the parts of one job, one after the other
    out: Path, method: Method, settings: Settings, inputs: Inputs, context: Context
) -> tuple[Measured, Mapping[str, Json]]:
    """Alter, check and save into ``out``.

    Return the measured fields of the manifest and the method's entries.
    """
    from hemorrhage.calibrate.reader import Statistics
    from hemorrhage.compress.checks import integrity, size
    from hemorrhage.compress.checks.fidelity import Fidelity
    from hemorrhage.models import folder
    from hemorrhage.models.blocks import blocks
    from hemorrhage.models.checkpoint import device, load
    from hemorrhage.models.formats.storage import formatted_layers, plain_dtype
    from hemorrhage.models.linears import linears_of
    from hemorrhage.models.reload import write_check
    from hemorrhage.models.weights import Weights

    base, parent = inputs.base, inputs.parent
    check_config(settings, inputs.altered)
    # What changes no weight leaves packed ones packed.
    model = load(inputs.altered, "stored", as_stored=not settings.changes_weights, base=base).cpu()
    check_model(settings, model)
    of_base = Weights(base)
    dtype = folder.dtype_of(of_base)
    linears = linears_of(model, missing_ok=True)
    names, before = list(linears), sum(linear.weight.numel() for linear in linears.values())
    # Expansion leaves layers with constant output, and some bases have them: they stay.
    constant = sum(integrity.constant(linear.weight) for linear in linears.values())
    del linears
    statistics, source = _statistics(settings, model, inputs, out)
    alteration = method.alter(model, settings, replace(context, statistics=statistics, device=device())) or Alteration()
    del statistics
    if alteration.model is not None:
        model, dtype = alteration.model, plain_dtype(alteration.model)
    origins = _origins(inputs.of_parent("blocks"), alteration.blocks)
    added = settings.equivalent_transform or alteration.equivalent_transform
    transform = _transform(added, inputs.of_parent("equivalent_transform") or "")
    calibration = Statistics(inputs.calibration) if inputs.calibration else None
    experts = _expert_origins(inputs.of_parent("experts") or {}, alteration)
    fidelity = Fidelity(of_base, origins, transform, calibration, experts)
    # Copies of blocks may be meant to be constant; a layer of the base may not become so.
    watched = () if settings.axis == "added" else names
    altered = Weights(parent, base) if parent else of_base
    survey = integrity.survey(model, altered, watched, constant, None if parent else fidelity)
    if parent:
        # Against the base, not against the parent.
        fidelity.go_through(model)
    fidelity.write(out)
    if survey.changed == 0 and settings.changes_weights:
        raise ValueError("changed no weight of the model")
    folder.save(model, dtype, base, out, shared_with=base)
    on_disk = Weights(out, base)
    integrity.check_disk(model, on_disk, dtype, of_base)
    write_check(model, out, context.seed)

    mask_bits = settings.mask_bits
    if mask_bits is None:
        mask_bits = inputs.of_parent("mask_bits")
    layers = {*names, *survey.zeros}
    bits = size.stored_layers(out, on_disk, layers, mask_bits, survey.zeros, formatted_layers(model))
    measured = Measured(
        statistics=source,
        theoretical=settings.theoretical or _of_masks(mask_bits),
        mask_bits=mask_bits,
        disk_bytes=size.disk_bytes(out),
        stored_bytes=size.stored_bytes(out),
        effective_bits=bits.all / survey.parameters,
        layer_bits=bits.layers / max(survey.layer_weights, 1),
        size_ratio=bits.all / size.stored_bits(of_base),
        parameters=survey.parameters,
        layers=len(blocks(model)),
        sparsity=survey.sparsity,
        changed=survey.changed,
        equivalent_transform=transform,
        calibration=_calibration(settings, inputs.calibration),
    )
    entries: dict[str, Json] = {}
    if settings.axis in ("removed", "added"):
        # The setting was rounded to whole blocks, heads, ranks; the manifest has the measured severity.
        entries["severity"] = abs(survey.layer_weights - before) / before
    if origins is not None:
        entries["blocks"] = origins
    if experts:
        entries["experts"] = experts
    return measured, {**entries, **alteration.entries}


def _origins(parent: list[int] | None, altered: list[int] | None) -> list[int] | None:
    """Return the base's block that each block was made from; None where the blocks are the base's.

    ``parent``: the same of the model that was altered; ``altered``: the block of that model, of each block.
    """
    if parent is None or altered is None:
        return parent if altered is None else altered
    return [parent[index] for index in altered]


def _expert_origins(parent: Mapping[str, list[int]], alteration: Alteration) -> dict[str, list[int]]:
    """Return the base's experts that each expert was made from, by mixture; none where they are the base's."""
    if alteration.blocks is not None:
        parent = {
            BLOCK.sub(str(index), name, count=1): kept
            for index, source in enumerate(alteration.blocks)
            for name, kept in parent.items()
            if BLOCK.findall(name)[0] == str(source)
        }
    altered = {
        name: [parent[name][index] for index in kept] if name in parent else kept
        for name, kept in (alteration.experts or {}).items()
    }
    return {**parent, **altered}


def _transform(added: EquivalentTransform, before: EquivalentTransform) -> EquivalentTransform:
    """Return the transform of a variant on another: a rotation hides a scaling."""
    return "rotated" if "rotated" in (added, before) else added or before


def _calibration(settings: Settings, calibration: Path | None) -> CalibrationSource | None:
    """Return the calibration set of the method; None where it read no statistics."""
    if calibration is None or not settings.statistics:
        return None
    manifest = read_manifest(calibration)
    return CalibrationSource(
        corpora=list(manifest["corpora"]),
        tokens=manifest["tokens"],
        seed=manifest["seed"],
        experts_without_tokens=manifest.get("experts_without_tokens", []),
    )


def _statistics(
    settings: Settings, model: PreTrainedModel, inputs: Inputs, aside: Path
) -> tuple[Statistics | None, str]:
    """Return the statistics for the method and their source for the report.

    ``aside``: a folder for states between blocks.
    """
    from hemorrhage.calibrate.reader import Statistics, Streamed
    from hemorrhage.models.checkpoint import device
    from hemorrhage.runtime.lazy import torch

    if not settings.statistics:
        return None, ""
    if inputs.calibration is None:
        raise ValueError(f"needs --calibration: {', '.join(settings.statistics)}")
    gradients = {read_manifest(folder)["spec"]["part"]: folder for folder in inputs.gradients}
    of_inputs = {"hessian", "activations"} & set(settings.statistics)
    propagated = settings.propagates
    absent = "hessian" in of_inputs and not read_manifest(inputs.calibration)["hessian_stored"]
    if propagated or (of_inputs and (inputs.parent is not None or absent)):
        source = "errors propagated" if propagated else "of the unaltered model, not stored"
        where = torch.device(device()) if settings.on_gpu else None
        statistics = Streamed(inputs.calibration, gradients, model, propagated, "hessian" in of_inputs, aside, where)
        return statistics, source
    return Statistics(inputs.calibration, gradients), "of the base model"


def main() -> None:
    """Entry point."""
    step.start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.compress", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", required=True, help="name of the variant")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--parent", type=Path, help="folder of the variant that is altered further")
    parser.add_argument("--calibration", type=Path, help="folder of the calibration statistics")
    parser.add_argument("--gradients", type=Path, nargs="*", default=[], help="folders of gradients")
    parser.add_argument("--spec", type=json.loads, required=True, help="what to do, as JSON")
    arguments = parser.parse_args()
    compress(
        arguments.out,
        arguments.variant,
        arguments.base,
        arguments.parent,
        arguments.calibration,
        arguments.gradients,
        arguments.spec,
    )


def _of_masks(mask_bits: float | None) -> str:
    """Say what there is to be gained of zeros under masks of so many bits a weight; empty where there are none."""
    if mask_bits is None:
        return ""
    return f"masks: {SEMI_STRUCTURED}" if math.isclose(mask_bits, TWO_OF_FOUR) else MASKS


if __name__ == "__main__":
    main()
