"""Mean NLL of a study's exported variants in the engine that reads them, beside this bench's: a table in Markdown.

python -m benchmarks.in_engines [--window 64] [--windows 16] [--corpus prose]

Run in the folder of a study. Each variant is exported as ``hemorrhage export`` does, packed, or dense where it can't be
packed, loaded by transformers alone, in the checkpoint's dtype, and deleted. Ours reads the checkpoint as the evaluate
step does, in float32. Both see the same windows of the corpus. What no export can hold has its reason instead.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import failure
from hemorrhage.runtime.command import CommandError
from hemorrhage.study.plan import Plan
from hemorrhage.tools.export import base_of, export


def mean_nll(model: Any, tokens: Tensor) -> float:
    """Return the mean NLL in nats per token of ``tokens`` int64 [windows, length], the first of each left out."""
    total = 0.0
    with torch.inference_mode():
        for window in tokens:
            logits = model(window[None]).logits[0, :-1].double()
            total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return total / tokens[:, 1:].numel()


def in_transformers(folder: Path, tokens: Tensor) -> tuple[str, float]:
    """Return how the checkpoint ``folder`` was exported, and its mean NLL in transformers.

    Raises CommandError or ValueError where no export can hold it.
    """
    reason: Exception | None = None
    for layout in ("packed", "dense"):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                export(folder, Path(scratch) / "out", layout, base_of(folder))
            except (CommandError, ValueError) as error:
                reason = reason or error
                continue
            model = AutoModelForCausalLM.from_pretrained(Path(scratch) / "out", dtype="auto").eval()
            return layout, mean_nll(model, tokens)
    raise reason or ValueError("nothing was exported")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.in_engines", description=__doc__)
    parser.add_argument("--window", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--corpus", default="prose")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    plan = Plan.read()
    base = Path(plan.checkpoint("base")).parent
    text = Path(plan.manifest("texts", arguments.corpus)).parent
    evaluated = load_file(text / "tokens.safetensors")["evaluation"].long()[: arguments.window * arguments.windows]
    tokens = evaluated.view(arguments.windows, arguments.window)
    print("| variant | export | this bench | transformers |\n|---|---|---|---|")
    for name in tqdm(("base", *plan.variants), mininterval=5, leave=False):
        folder = Path(plan.checkpoint(name)).parent
        if not folder.is_dir() or (name != "base" and failure(folder)):
            continue
        ours = mean_nll(load(folder, base=base), tokens)
        try:
            layout, theirs = in_transformers(folder, tokens)
        except (CommandError, ValueError) as error:
            print(f"| {name} | – | {ours:.4f} | {str(error).split('; --as')[0]} |", flush=True)
            continue
        print(f"| {name} | {layout} | {ours:.4f} | {theirs:.4f} |", flush=True)


if __name__ == "__main__":
    main()
