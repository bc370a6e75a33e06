"""Our GPTQ against llmcompressor's on the first blocks of a model, both in one run.

LLM_COMPRESSOR_LOG_DISABLED=true OMP_NUM_THREADS=1 python -m tests.bench_compress --base DIR

Prints CPU seconds and two measures of quality: the sum over layers of tr(dW H dWᵀ) with the dense model's H,
over that of round to nearest, and the mean KL to the unquantized model on the calibration tokens. Both sides
start from the tokens: ours is timed with its calibration, of which a sweep needs only one, and without.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch import Tensor
from transformers import PreTrainedModel

from hemorrhage.calibrate.statistics import collect
from hemorrhage.compress import gptq, rtn
from hemorrhage.compress.blocks import blocks, linears_of
from hemorrhage.compress.stack import rearrange
from hemorrhage.compress.statistics import Statistics
from hemorrhage.models.checkpoint import load


def shortened(base: Path, number: int) -> PreTrainedModel:
    """The first ``number`` blocks of the model."""
    model = load(base)
    rearrange(model, list(range(min(number, len(blocks(model))))))
    return model


def peer(model: PreTrainedModel, tokens: Tensor, settings: gptq.Settings) -> None:
    """llmcompressor's GPTQ with the same grids and damping; it propagates errors from block to block."""
    rows = tokens.tolist()
    weights = {
        "num_bits": settings.bits,
        "symmetric": settings.symmetric,
        "strategy": "group",
        "group_size": settings.group_size,
    }
    recipe = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
        ignore=["lm_head"],
        actorder=None,
        dampening_frac=settings.damp,
        block_size=settings.block_size,
    )
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
        recipe=recipe,
        num_calibration_samples=len(rows),
        max_seq_length=tokens.shape[1],
    )


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds of ``work``."""
    start = time.process_time()
    work()
    return time.process_time() - start


def losses(model: PreTrainedModel, dense: PreTrainedModel, statistics: Statistics) -> float:
    """Sum over layers of tr(dW H dWᵀ)."""
    total = 0.0
    changed, original = linears_of(model), linears_of(dense)
    with torch.no_grad():
        for first, names in statistics.shared().items():
            moment = statistics.second_moment(first)
            for name in names:
                weight = changed[name].weight
                change = values(changed[name], weight) - original[name].weight
                total += ((change @ moment) * change).sum().item()
    return total


def values(linear: torch.nn.Linear, weight: Tensor) -> Tensor:
    """The weights a layer computes with; llmcompressor's layers quantize them at every call."""
    if not hasattr(linear, "quantization_scheme"):
        return weight
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    scheme = linear.quantization_scheme.weights
    return fake_quantize(weight, linear.weight_scale, linear.weight_zero_point, scheme)


def divergence(model: PreTrainedModel, dense: PreTrainedModel, tokens: Tensor) -> float:
    """Mean KL(dense ‖ model), nats per token."""
    total = 0.0
    with torch.no_grad():
        for window in tokens.split(1):
            a, b = (side(window).logits.log_softmax(-1) for side in (dense, model))
            total += (a.exp() * (a - b)).sum(-1).mean().item()
    return total / len(tokens)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group-size", type=int, default=64)
    arguments = parser.parse_args()
    dense = shortened(arguments.base, arguments.blocks)
    vocabulary = dense.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(vocabulary, (arguments.samples, 1), generator=generator)
    # Text that the model itself writes: real enough for inputs that are correlated as in use.
    tokens = load(arguments.base).generate(
        start, do_sample=True, max_length=arguments.length, min_length=arguments.length, pad_token_id=0
    )
    with tempfile.TemporaryDirectory() as folder:
        collected = timed(lambda: collect(dense, tokens, Path(folder, "hessian.safetensors")))
        statistics = Statistics(Path(folder))
        print(f"calibrate {collected:8.1f} s CPU, once for all settings")
        for bits in arguments.bits:
            settings = gptq.Settings(bits=bits, group_size=arguments.group_size)
            nearest, ours, theirs = (shortened(arguments.base, arguments.blocks) for _ in range(3))
            rtn.alter(nearest, settings, None, 0, torch.float32)
            seconds = timed(lambda m=ours, s=settings: gptq.alter(m, s, statistics, 0, torch.float32))
            peers = timed(lambda m=theirs, s=settings: peer(m, tokens, s))
            floor = losses(nearest, dense, statistics)
            for name, model, cpu in (("ours", ours, seconds), ("llmcompressor", theirs, peers)):
                print(
                    f"{bits} bit {name:14} {cpu:8.1f} s CPU   layer loss / RTN's "
                    f"{losses(model, dense, statistics) / floor:.4f}   KL "
                    f"{divergence(model, dense, tokens):.5f}"
                )


if __name__ == "__main__":
    main()
