"""A calibration set and its statistics.

python -m hemorrhage.calibrate OUT --base DIR --texts DIR... --spec JSON

``spec``: ``samples`` windows of ``length`` tokens (those that the tokenizer puts in front of a text are among them), of
several texts in turn, ``seed``, and ``max_hessian_gb``: second moments that are larger are not stored, and compression
collects them block by block.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import MANIFEST, read_manifest, write_manifest, writing

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

NOTE = (
    "statistics of the dense model: errors are not propagated from block to block, unlike in the sequential "
    "originals of GPTQ, SparseGPT and Wanda, which these methods' `sequential` setting follows"
)


def calibrate(out: Path, base: Path, texts: list[Path], spec: Mapping[str, Any]) -> None:
    """Write the calibration set and the statistics of hemorrhage.calibrate.statistics into ``out``."""
    import torch
    from safetensors.torch import load_file, save_file

    from hemorrhage.calibrate.statistics import collect
    from hemorrhage.calibrate.windows import draw
    from hemorrhage.models.checkpoint import load

    model = load(base, dtype="stored")
    sources = [read_manifest(text) for text in texts]
    leading = _leading(base)
    tokens = torch.empty((spec["samples"], spec["length"]), dtype=torch.int32)
    for index, text in enumerate(texts):
        # Every so many windows one of this text, so that no method sees all of one before the other.
        turns = tokens[index :: len(texts)]
        stream = load_file(text / "tokens.safetensors")["calibration"]
        turns[:] = draw(stream, len(turns), spec["length"], spec["seed"], leading)
    with writing(out) as part:
        save_file({"tokens": tokens}, part / "tokens.safetensors")
        collected = collect(model, tokens, part, 1e9 * spec["max_hessian_gb"])
        write_manifest(
            part,
            corpora={source["corpus"]: source["sha256"] for source in sources},
            spec=spec,
            seed=spec["seed"],
            tokens=tokens.numel(),
            note=NOTE,
            **collected,
            **_experts(model, tokens),
        )


def _experts(model: PreTrainedModel, tokens: Tensor) -> dict[str, list[str]]:
    """Of a mixture of experts: those that no token of the calibration set takes, by layer."""
    from hemorrhage.calibrate.expert_usage import usage, without_tokens
    from hemorrhage.models.experts import mixtures

    return {"experts_without_tokens": without_tokens(usage(model, tokens))} if mixtures(model) else {}


def _leading(base: Path) -> list[int]:
    """Return the tokens that the base's tokenizer puts in front of a text; none for a folder without a manifest."""
    return read_manifest(base)["leading"] if (base / MANIFEST).is_file() else []


def main() -> None:
    """Entry point."""
    step.start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.calibrate", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="folders of prepared texts")
    parser.add_argument("--spec", type=json.loads, required=True, help="see above")
    arguments = parser.parse_args()
    calibrate(arguments.out, arguments.base, arguments.texts, arguments.spec)


if __name__ == "__main__":
    main()
