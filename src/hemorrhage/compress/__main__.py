"""One altered model.

python -m hemorrhage.compress OUT --variant V --base DIR [--calibration DIR] --spec JSON

``spec``: ``sweep``, ``family``, ``method`` (a module of hemorrhage.compress), ``settings`` (its Settings),
``seed``. A method module has ``Settings`` with ``axis``, ``severity``, ``label``, ``curve``, ``statistics``
and ``check``, and ``alter(model, settings, statistics, seed, dtype)``, which alters a float32 model in
place and returns a hemorrhage.compress.packing.Packed where weights are stored packed, else None.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from hemorrhage import step
from hemorrhage.artifact import failure_recorded, write_manifest, writing


def compress(out: Path, variant: str, base: Path, calibration: Path | None, spec: dict[str, Any]) -> None:
    """Write the altered model into ``out``; where that fails, a manifest that says why."""
    method = importlib.import_module(f"hemorrhage.compress.{spec['method']}")
    settings = method.Settings.model_validate(spec["settings"])
    identity = {
        "variant": variant,
        **{key: spec[key] for key in ("sweep", "family", "method", "seed")},
        "settings": settings.model_dump(mode="json"),
        "axis": settings.axis,
        "severity": settings.severity,
        "label": settings.label,
        "curve": settings.curve,
    }
    with failure_recorded(out, **identity), writing(out) as part:
        measured = _compress(part, method, settings, base, calibration, spec["seed"])
        write_manifest(part, **{**identity, **measured})


def _compress(
    part: Path, method: Any, settings: Any, base: Path, calibration: Path | None, seed: int
) -> dict[str, Any]:
    """Alter, check, save; returns the measured fields of the manifest."""
    import torch

    from hemorrhage.compress import folder, integrity, size
    from hemorrhage.compress.blocks import blocks, linears_of
    from hemorrhage.compress.reload import write_check
    from hemorrhage.compress.statistics import Statistics
    from hemorrhage.models.checkpoint import load

    if settings.statistics and calibration is None:
        raise ValueError(f"needs --calibration: {', '.join(settings.statistics)}")
    model = load(base, dtype="float32").cpu()
    dtype = folder.dtype_of(base)
    number = len(blocks(model))
    packed = method.alter(model, settings, calibration and Statistics(calibration), seed, dtype)
    with torch.no_grad():
        # What is not packed is stored in the base's dtype, so the model becomes what will be read back.
        for name, value in folder.distinct(model).items():
            if packed is None or name not in packed.weights:
                value.copy_(value.to(dtype))
    integrity.check_finite(model)
    changed = integrity.changed(model, base)
    if changed == 0:
        raise ValueError("changed no weight of the model")
    folder.save(model, packed, dtype, base, part)
    write_check(model, part, seed)
    linears = linears_of(model)
    sparse = settings.axis == "sparsity"
    parameters = sum(value.numel() for value in folder.distinct(model).values())
    bits = size.stored_bits(part, linears, settings.mask_bits) if sparse else size.stored_bits(part)
    measured: dict[str, Any] = {}
    if settings.axis in ("removed", "added"):
        # A share of the blocks was rounded to whole ones; the manifest says what was done.
        measured["severity"] = abs(len(blocks(model)) - number) / number
    return {
        **measured,
        "disk_bytes": size.disk_bytes(part),
        "effective_bits": bits / parameters,
        "size_ratio": bits / size.stored_bits(base),
        "parameters": parameters,
        "layers": len(blocks(model)),
        "sparsity": integrity.zero_share(linears),
        "changed": changed,
    }


def main() -> None:
    """Entry point."""
    step.start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.compress", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", required=True, help="name of the variant")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--calibration", type=Path, help="folder of the calibration statistics")
    parser.add_argument("--spec", type=json.loads, required=True, help="what to do, as JSON")
    arguments = parser.parse_args()
    compress(arguments.out, arguments.variant, arguments.base, arguments.calibration, arguments.spec)


if __name__ == "__main__":
    main()
