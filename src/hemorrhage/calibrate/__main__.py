"""A calibration set and its statistics.

python -m hemorrhage.calibrate OUT --base DIR --text DIR --spec JSON

``spec``: ``samples`` windows of ``length`` tokens (with BOS where the tokenizer adds it), ``seed``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hemorrhage import step
from hemorrhage.artifact import MANIFEST, read_manifest, write_manifest, writing

NOTE = (
    "statistics of the dense model: errors are not propagated from block to block, unlike in the sequential "
    "originals of GPTQ, SparseGPT and Wanda"
)


def calibrate(out: Path, base: Path, text: Path, spec: dict[str, Any]) -> None:
    """Write ``tokens.safetensors``, ``hessian.safetensors`` and ``influence.json`` into ``out``."""
    import torch
    from safetensors.torch import load_file, save_file

    from hemorrhage.calibrate.statistics import collect
    from hemorrhage.calibrate.windows import draw
    from hemorrhage.models.checkpoint import load

    model = load(base, dtype="float32")
    source = read_manifest(text)
    tokens = draw(
        load_file(text / "tokens.safetensors")["calibration"],
        spec["samples"],
        spec["length"],
        spec["seed"],
        bos=model.config.bos_token_id if _adds_bos(base) else None,
    )
    with writing(out) as part:
        save_file({"tokens": tokens}, part / "tokens.safetensors")
        influence = collect(model, tokens, part / "hessian.safetensors")
        if not torch.tensor(influence).isfinite().all():
            raise ValueError("the hidden states of the base model are not finite; it can't be calibrated")
        (part / "influence.json").write_text(json.dumps({"block_influence": influence}, indent=1) + "\n")
        write_manifest(
            part,
            corpus=source["corpus"],
            sha256=source["sha256"],
            spec=spec,
            seed=spec["seed"],
            tokens=tokens.numel(),
            note=NOTE,
        )


def _adds_bos(base: Path) -> bool:
    """Whether the base's tokenizer puts BOS in front of a text; false for a folder without a manifest."""
    return (base / MANIFEST).is_file() and bool(read_manifest(base).get("adds_bos", False))


def main() -> None:
    """Entry point."""
    step.start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.calibrate", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--text", type=Path, required=True, help="folder of a prepared text")
    parser.add_argument("--spec", type=json.loads, required=True, help='{"samples", "length", "seed"}')
    arguments = parser.parse_args()
    calibrate(arguments.out, arguments.base, arguments.text, arguments.spec)


if __name__ == "__main__":
    main()
