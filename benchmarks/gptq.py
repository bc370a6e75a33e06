"""Eight GPTQ variants of a model: ours against llmcompressor's oneshot, in one run on the same tokens.

    OMP_NUM_THREADS=1 python -m benchmarks.gptq --base DIR [--blocks 6]

Ours collects its statistics once and makes all variants from them; llmcompressor starts over for each. Prints
the CPU seconds of both sides, their ratio for all variants, and the mean KL to the unquantized model on
windows that neither has seen. llmcompressor is measured on ``--peer`` of the variants, and its total is that
many times their mean, unless ``--peer-all`` is given; once more with benchmarks.peer_columns. Its model is
float32, in which it is faster on a processor than in bfloat16, and its grids are ``actorder=None``, asymmetric,
as ours. It runs in processes of its own, whose C library is as it comes: our loading tells glibc to keep freed memory
(hemorrhage.models.stream.keep_freed), which makes llmcompressor faster, too. Neither side's time holds loading or
saving.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import peer_columns as engine
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.calibrate.statistics import collect
from hemorrhage.calibrate.windows import draw
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import gptq
from hemorrhage.compress.solvers.stack import rearrange
from hemorrhage.data.texts import embedded
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load, load_tokenizer

BITS = (8, 4, 3, 2)
GROUPS = (64, 32)
HELD_OUT = 8
"""Windows on which the KL is taken."""


def shortened(base: Path, number: int | None, dtype: str) -> PreTrainedModel:
    """Cut the model to its first ``number`` blocks."""
    model = load(base, dtype=dtype).cpu()
    if number:
        rearrange(model, list(range(min(number, len(blocks(model))))))
    return model


def windows(base: Path, split: str, samples: int, length: int) -> Tensor:
    """Windows int64 [samples, length] of the embedded prose."""
    texts = embedded.documents("prose")[split]
    tokens = load_tokenizer(base)(embedded.JOIN.join(texts), add_special_tokens=False)["input_ids"]
    return draw(torch.tensor(tokens), samples, length, seed=0, leading=[]).long()


def oneshot(model: PreTrainedModel, tokens: Tensor, settings: gptq.Settings) -> None:
    """Run llmcompressor's GPTQ with the same grids and damping; it propagates errors from block to block."""
    from datasets import Dataset
    from llmcompressor.entrypoints.oneshot import oneshot as compress
    from llmcompressor.modifiers.gptq import GPTQModifier
    from loguru import logger

    logger.disable("llmcompressor")

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
    )
    compress(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
        recipe=recipe,
        num_calibration_samples=len(rows),
        max_seq_length=tokens.shape[1],
    )


def peer(base: Path, number: int | None, point: gptq.Settings, tokens: Tensor, held_out: Tensor) -> tuple[float, float]:
    """CPU seconds of llmcompressor's ``point``, and its KL."""
    dense, model = (AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval() for _ in range(2))
    if number:
        for each in (dense, model):
            rearrange(each, list(range(min(number, len(blocks(each))))))
    seconds = timed(lambda: oneshot(model, tokens, point))
    return seconds, divergence(model, dense, held_out)


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds of ``work``."""
    start = time.process_time()
    work()
    return time.process_time() - start


def divergence(model: PreTrainedModel, dense: PreTrainedModel, tokens: Tensor) -> float:
    """Mean KL(dense ‖ model), nats per token."""
    total = 0.0
    with torch.inference_mode():
        for window in tokens.split(1):
            a, b = (side(window).logits.float().log_softmax(-1) for side in (dense, model))
            total += (a.exp() * (a - b)).sum(-1).mean().item()
    return total / len(tokens)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gptq", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the model")
    parser.add_argument("--blocks", type=int, help="only so many of its first blocks")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows; the default study's number")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--peer", type=int, default=1, help="variants that llmcompressor is measured on")
    parser.add_argument("--peer-all", action="store_true", help="measure it on all variants")
    chosen = parser.parse_args()
    tokens = windows(chosen.base, "calibration", chosen.samples, chosen.length)
    held_out = windows(chosen.base, "evaluation", HELD_OUT, chosen.length)
    dense = shortened(chosen.base, chosen.blocks, "float32")
    points = [gptq.Settings(bits=b, group_size=g) for b, g in itertools.product(BITS, GROUPS)]
    # 4 bits in groups of 64 first: what people use.
    points.sort(key=lambda point: (point.bits != 4, point.group_size != GROUPS[0]))
    measured = points if chosen.peer_all else points[: chosen.peer]
    print(f"{len(blocks(dense))} blocks, {tokens.numel()} tokens, {torch.get_num_threads()} thread(s)")

    with tempfile.TemporaryDirectory() as folder:
        stored = shortened(chosen.base, chosen.blocks, "stored")
        ours = timed(lambda: collect(stored, tokens, Path(folder)))
        statistics = Statistics(Path(folder))
        print(f"ours           statistics, once for all       {ours:8.1f} s")
        for point in points:
            model = shortened(chosen.base, chosen.blocks, "stored")
            seconds = timed(functools.partial(gptq.alter, model, point, Context(statistics)))
            ours += seconds
            kl = divergence(model.float(), dense, held_out)
            print(f"ours           {point.label:30} {seconds:8.1f} s   KL {kl:.5f}", flush=True)

    theirs = 0.0
    alone = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    for point in measured:
        seconds, kl = alone.submit(peer, chosen.base, chosen.blocks, point, tokens, held_out).result()
        theirs += seconds
        print(f"llmcompressor  {point.label:30} {seconds:8.1f} s   KL {kl:.5f}", flush=True)
    theirs *= len(points) / len(measured)

    engine.register()
    model = shortened(chosen.base, chosen.blocks, "float32")
    seconds = timed(lambda: oneshot(model, tokens, points[0]))
    kl = divergence(model, dense, held_out)
    print(f"  with engine  {points[0].label:30} {seconds:8.1f} s   KL {kl:.5f}")

    how = "measured" if len(measured) == len(points) else f"from {len(measured)} of them"
    print(f"{len(points)} variants: ours {ours:.1f} s, llmcompressor {theirs:.1f} s ({how}); ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
