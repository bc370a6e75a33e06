"""One altered model.

python -m hemorrhage.compress OUT --variant V --base DIR [--parent DIR] [--calibration DIR] [--gradients DIR...]
    --spec JSON

``spec``: ``sweep``, ``method`` and its ``settings`` (see hemorrhage.compress.method), ``seed``, and ``on``, the variant
that is altered further (``--parent``), or null for the base.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import Context, Method, Settings, described
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import failure, failure_recorded, read_manifest, write_manifest, writing

if TYPE_CHECKING:
    from hemorrhage.calibrate.reader import Statistics

MASKS = "masks: no engine today stores or computes less for zeros"


def compress(
    out: Path,
    variant: str,
    base: Path,
    parent: Path | None,
    calibration: Path | None,
    gradients: list[Path],
    spec: dict[str, Any],
) -> None:
    """Write the altered model into ``out``; where that fails, a manifest that says why."""
    method = method_of(spec["method"])
    settings = method.settings.model_validate(spec["settings"])
    on = spec.get("on")
    identity = {
        "variant": variant,
        **{key: spec[key] for key in ("sweep", "seed")},
        "on": on,
        **described(method, settings),
        "curve": ", ".join(filter(None, [settings.curve, on and f"on {on}"])),
    }
    from hemorrhage.compress import progress
    from hemorrhage.models.reload import FreshProcess

    with failure_recorded(out, **identity), progress.kept(out) as kept, FreshProcess() as fresh, writing(out) as part:
        reason = parent and failure(parent)
        if reason:
            raise ValueError(f"{on} was not made: {reason}")
        context = Context(seed=spec["seed"], progress=kept)
        measured = _compress(part, method, settings, base, parent, calibration, gradients, context)
        fresh.verify(part, base)
        write_manifest(part, **{**identity, **measured})


def _compress(
    part: Path,
    method: Method,
    settings: Settings,
    base: Path,
    parent: Path | None,
    calibration: Path | None,
    gradients: list[Path],
    context: Context,
) -> dict[str, Any]:
    """Alter, check, save; returns the measured fields of the manifest."""
    from hemorrhage.calibrate.reader import Statistics
    from hemorrhage.compress.checks import integrity, size
    from hemorrhage.compress.checks.fidelity import Fidelity
    from hemorrhage.models import folder
    from hemorrhage.models.blocks import blocks
    from hemorrhage.models.checkpoint import device, load
    from hemorrhage.models.formats.storage import formatted_layers
    from hemorrhage.models.linears import linears_of
    from hemorrhage.models.reload import write_check
    from hemorrhage.models.weights import Weights

    _check(settings, parent or base)
    # What changes no weight leaves packed ones packed.
    model = load(parent or base, "stored", as_stored=not settings.changes_weights, base=base).cpu()
    of_base = Weights(base)
    dtype = folder.dtype_of(of_base)
    linears = linears_of(model, missing_ok=True)
    names, before = list(linears), sum(linear.weight.numel() for linear in linears.values())
    # Expansion leaves silent layers, and some bases have them: they stay.
    silent = sum(integrity.constant(linear.weight) for linear in linears.values())
    del linears
    statistics, kind = _statistics(settings, model, parent, calibration, gradients, part)
    own = method.alter(model, settings, replace(context, statistics=statistics, device=device())) or {}
    del statistics
    own |= _blocks(parent, own.pop("blocks", None))
    seen = Statistics(calibration) if calibration else None
    fidelity = Fidelity(of_base, own.get("blocks"), _moved(settings, parent), seen)
    # Copies of blocks may be meant to be silent; a layer that was there may not fall silent.
    kept = () if settings.axis == "added" else names
    altered = Weights(parent, base) if parent else of_base
    found = integrity.survey(model, altered, kept, silent, None if parent else fidelity)
    if parent:
        # Against the base, not against what was altered.
        fidelity.go_through(model)
    fidelity.write(part)
    if found.changed == 0 and settings.changes_weights:
        raise ValueError("changed no weight of the model")
    folder.save(model, dtype, base, part, shared_with=base)
    on_disk = Weights(part, base)
    integrity.check_disk(model, on_disk, dtype)
    write_check(model, part, context.seed)

    mask_bits = settings.mask_bits
    if mask_bits is None and parent is not None:
        mask_bits = read_manifest(parent).get("mask_bits")
    bits = size.stored_layers(part, on_disk, {*names, *found.zeros}, mask_bits, found.zeros, formatted_layers(model))
    measured: dict[str, Any] = {}
    if settings.axis in ("removed", "added"):
        # What was asked for was rounded to whole blocks, heads, ranks; the manifest says what was done.
        measured["severity"] = abs(found.layer_weights - before) / before
    measured |= own
    theoretical = settings.theoretical or (MASKS if mask_bits is not None else "")
    return {
        "statistics": kind,
        "theoretical": theoretical,
        "mask_bits": mask_bits,
        "disk_bytes": size.disk_bytes(part),
        "stored_bytes": size.stored_bytes(part),
        "effective_bits": bits.all / found.parameters,
        "layer_bits": bits.layers / max(found.layer_weights, 1),
        "size_ratio": bits.all / size.stored_bits(of_base),
        "parameters": found.parameters,
        "layers": len(blocks(model)),
        "sparsity": found.sparsity,
        "changed": found.changed,
        "moved": _moved(settings, parent),
        "calibration": _calibration(settings, calibration),
        **measured,
    }


def _check(settings: Any, folder: Path) -> None:
    """Raise RefusedError where these settings can't be for the model in a folder; the plan may not have known it."""
    from hemorrhage.models.architecture import text_entries
    from hemorrhage.models.refused import RefusedError

    problem = settings.check(text_entries(folder)) if hasattr(settings, "check") else None
    if problem:
        raise RefusedError(problem)


def _blocks(parent: Path | None, own: list[int] | None) -> dict[str, list[int]]:
    """``blocks``: the base's block that each block was made from; nothing where none was moved."""
    before = read_manifest(parent).get("blocks") if parent else None
    if own is None or before is None:
        found = before if own is None else own
        return {} if found is None else {"blocks": found}
    return {"blocks": [before[place] for place in own]}


def _moved(settings: Settings, parent: Path | None) -> str:
    """Whether weights were ``scaled`` or ``turned`` without changing what the model computes; see Fidelity."""
    before = read_manifest(parent).get("moved", "") if parent else ""
    return "turned" if "turned" in (settings.moved, before) else settings.moved or before


def _calibration(settings: Settings, calibration: Path | None) -> dict[str, Any] | None:
    """What the method was calibrated on, and which experts no token takes; None where it read no statistics."""
    if calibration is None or not settings.statistics:
        return None
    facts = read_manifest(calibration)
    without = facts.get("experts_without_tokens", [])
    return {"corpora": list(facts["corpora"]), "tokens": facts["tokens"], "experts_without_tokens": without}


def _statistics(
    settings: Settings, model: Any, parent: Path | None, calibration: Path | None, gradients: list[Path], aside: Path
) -> tuple[Statistics | None, str]:
    """What the method may read, and what the report says of it; ``aside``: a folder for states between blocks."""
    from hemorrhage.calibrate.reader import Statistics, Streamed
    from hemorrhage.models.checkpoint import device
    from hemorrhage.runtime.lazy import torch

    if not settings.statistics:
        return None, ""
    if calibration is None:
        raise ValueError(f"needs --calibration: {', '.join(settings.statistics)}")
    parts = {read_manifest(folder)["spec"]["part"]: folder for folder in gradients}
    of_inputs = {"hessian", "activations"} & set(settings.statistics)
    propagated = settings.propagates
    absent = "hessian" in of_inputs and not read_manifest(calibration)["hessian_stored"]
    if propagated or (of_inputs and (parent is not None or absent)):
        kind = "errors propagated" if propagated else "of the unaltered model, not stored"
        where = torch.device(device()) if settings.on_gpu else None
        return Streamed(calibration, parts, model, propagated, "hessian" in of_inputs, aside, where), kind
    return Statistics(calibration, parts), "of the base model"


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


if __name__ == "__main__":
    main()
