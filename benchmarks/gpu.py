"""A model of 7B-class shape with random weights: how fast it runs, and GPTQ next to llmcompressor's, in one run.

    python -m benchmarks.gpu [--blocks 32] [--hidden 4096] [--intermediate 11008]

Prints tokens per second of prefill and of decoding in bfloat16 on the device that HEMORRHAGE_DEVICE or torch names
(not with --no-speed); then for --layers of its blocks the seconds a linear layer of GPTQ, and the peak of memory: ours
as the bench runs it, statistics and solver on that device from files in between, llmcompressor's oneshot on the device.
Once more for eight variants: ours in one sweep with one factor, of integers and of all formats, and column by column as
without the kernel; llmcompressor starts over for each, is measured on --peer of them, and its total is that many times
their mean. Random weights and random tokens: speeds are those of the shape, and nothing is said about quality.

Ten minutes of a machine with a GPU are enough. Without one HEMORRHAGE_DEVICE=cpu tries the script on a small shape:

    HEMORRHAGE_DEVICE=cpu python -m benchmarks.gpu --blocks 1 --hidden 128 --intermediate 256 --vocabulary 500 \
        --layers 1 --samples 2 --length 64 --new-tokens 4 --batch 2
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.gptq import oneshot
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.calibrate.statistics import collect
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import gptq
from hemorrhage.compress.solvers import strip
from hemorrhage.compress.solvers.columns import Layers, in_batches
from hemorrhage.compress.solvers.grid import Quantized
from hemorrhage.compress.solvers.number_formats import AnyQuantized
from hemorrhage.compress.solvers.packing import pack
from hemorrhage.models.checkpoint import device
from hemorrhage.models.linears import linears_of

T = TypeVar("T")

INTEGERS = [gptq.Settings(bits=bits, symmetric=symmetric) for symmetric in (False, True) for bits in (4, 8, 3, 2)]
FORMATS = [
    *INTEGERS[:4],
    *(gptq.Settings.model_validate({"format": name}) for name in ("fp8", "nvfp4", "mxfp4", "mxfp8")),
]
"""Eight variants each: of integers in groups of 128, and of everything that engines load."""


def build(chosen: argparse.Namespace, number: int, where: str) -> PreTrainedModel:
    """Make a random Llama in bfloat16, with ``number`` blocks."""
    config = LlamaConfig(
        hidden_size=chosen.hidden, intermediate_size=chosen.intermediate, num_attention_heads=chosen.hidden // 64,
        num_key_value_heads=max(1, chosen.hidden // 256), vocab_size=chosen.vocabulary, num_hidden_layers=number,
        max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(where):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval()
    return model


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of ``work``, the device's included."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak(where: str) -> str:
    """Most memory since the last call: the device's, and this process's resident since it began."""
    host = f"host {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    if where == "cpu":
        return host
    held = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f"device {held:.2f} GiB, {host}"


def speed(chosen: argparse.Namespace, where: str, name: str) -> None:
    """Print tokens per second of prefill and of decoding on the device called ``name``."""
    model: Any = build(chosen, chosen.blocks, where)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters in bfloat16, {chosen.blocks} blocks, {name}")

    tokens = torch.randint(chosen.vocabulary, (chosen.batch, chosen.length), device=where)
    with torch.inference_mode():
        model(tokens[:1], logits_to_keep=1)
        took = seconds(lambda: model(tokens, logits_to_keep=1))
        print(f"prefill  {tokens.numel() / took:10.0f} tokens/s   batch {chosen.batch}, {peak(where)}", flush=True)
        rows = tokens[:, : min(128, chosen.length)]
        limits = {"min_new_tokens": chosen.new_tokens, "max_new_tokens": chosen.new_tokens, "do_sample": False}
        mask = torch.ones_like(rows)
        took = seconds(lambda: model.generate(rows, attention_mask=mask, pad_token_id=0, **limits))
        print(
            f"decoding {chosen.batch * chosen.new_tokens / took:10.0f} tokens/s   batch {chosen.batch}, {peak(where)}",
            flush=True,
        )


def ours(
    chosen: argparse.Namespace, where: str, calibration: torch.Tensor, settings: gptq.Settings
) -> tuple[float, float]:
    """Seconds a linear layer of collecting statistics, and of quantizing."""
    model = build(chosen, chosen.layers, where)
    linears = len(linears_of(model))
    with tempfile.TemporaryDirectory() as folder:
        collecting = seconds(lambda: collect(model, calibration, Path(folder)))
        model = model.cpu()
        solving = seconds(lambda: gptq.alter(model, settings, Context(Statistics(Path(folder)), device=where)))
    return collecting / linears, solving / linears


def ours_of_many(chosen: argparse.Namespace, where: str, calibration: torch.Tensor) -> None:
    """Print the seconds a linear layer of variants that are swept together, by what they go into."""
    model = build(chosen, chosen.layers, where)
    linears = len(linears_of(model))
    in_strips = strip.is_available
    with tempfile.TemporaryDirectory() as folder:
        collect(model, calibration, Path(folder))
        model, context = model.cpu(), Context(Statistics(Path(folder)), device=where)
        ways = [("eight of integers", INTEGERS, in_strips), ("eight of all formats", FORMATS, in_strips)]
        if in_strips(torch.device(where)):
            ways.append(("without the kernel", INTEGERS, lambda where: False))
        for name, variants, way in ways:
            strip.is_available = way
            # The first time loads kernels and libraries.
            swept_together(model, variants, context)
            peak(where)
            spent = {part: took / linears for part, took in swept_together(model, variants, context).items()}
            parts = ", ".join(f"{took:.3f} {part}" for part, took in spent.items())
            print(f"ours, {name:20} {sum(spent.values()):8.3f} s a layer ({parts}), {peak(where)}", flush=True)
    strip.is_available = in_strips


def swept_together(model: PreTrainedModel, variants: list[gptq.Settings], context: Context) -> dict[str, float]:
    """Seconds of reading and factoring, of sweeping, and of packing all variants of a model, which stays as it is."""
    spent = dict.fromkeys(("factors", "sweeps", "packing"), 0.0)
    batches = in_batches(model, context, "gptq", variants[0].damp)
    with torch.no_grad():
        while True:
            batch: list[Layers] = []
            spent["factors"] += seconds(partial(extend, batch, partial(next, batches, [])))
            if not batch:
                return spent
            swept: list[list[Sequence[AnyQuantized]]] = []
            dtype = batch[0].weights[0].dtype
            spent["sweeps"] += seconds(partial(extend, swept, partial(gptq.quantize_variants, batch, variants, dtype)))
            spent["packing"] += seconds(partial(pack_all, variants, swept))


def extend(values: list[T], work: Callable[[], list[T]]) -> None:
    """Append what ``work`` returns."""
    values.extend(work())


def pack_all(variants: list[gptq.Settings], swept: list[list[Sequence[AnyQuantized]]]) -> None:
    """Make what is stored of all layers of all variants."""
    for settings, of_inputs in zip(variants, swept, strict=True):
        for layers in of_inputs:
            for layer in layers:
                pack("layer", layer, settings.bits) if isinstance(layer, Quantized) else layer.tensors()


def theirs(chosen: argparse.Namespace, where: str, calibration: torch.Tensor, settings: gptq.Settings) -> float:
    """Seconds a linear layer of llmcompressor's oneshot."""
    with tempfile.TemporaryDirectory() as folder:
        # It reads a model's folder again, and wants a tokenizer there.
        build(chosen, chosen.layers, "cpu").save_pretrained(folder)
        words = Tokenizer(WordLevel({"word": 0}, unk_token="word"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
        # Faster with float32 on a processor; on a GPU it takes what the checkpoint has.
        dtype = torch.float32 if where == "cpu" else torch.bfloat16
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        model: PreTrainedModel = loaded.to(where)
        return seconds(lambda: oneshot(model, calibration, settings)) / len(linears_of(model))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--layers", type=int, default=2, help="blocks that GPTQ is measured on")
    parser.add_argument("--samples", type=int, default=16, help="calibration windows")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--peer", type=int, default=2, help="variants that llmcompressor is measured on")
    parser.add_argument("--no-speed", action="store_true", help="GPTQ alone")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    chosen = parser.parse_args()
    where = device()
    name = torch.cuda.get_device_name() if where == "cuda" else f"{torch.get_num_threads()} thread(s) of the processor"
    if not chosen.no_speed:
        speed(chosen, where, name)
    # The last peak was reset while that model was still there: it would count as GPTQ's.
    peak(where)

    settings = INTEGERS[0]
    calibration = torch.randint(chosen.vocabulary, (chosen.samples, chosen.length))
    small = argparse.Namespace(**vars(chosen) | {"hidden": 256, "intermediate": 512, "layers": 1})
    # The first run of each loads kernels and libraries.
    ours(small, where, calibration, settings)
    peak(where)
    collecting, solving = ours(chosen, where, calibration, settings)
    print(
        f"ours           {collecting + solving:8.3f} s a layer ({collecting:.3f} statistics, {solving:.3f} solver),"
        f" {peak(where)}",
        flush=True,
    )
    ours_of_many(chosen, where, calibration)
    theirs(small, where, calibration, settings)
    peak(where)
    measured = []
    for point in INTEGERS[: chosen.peer]:
        measured.append(theirs(chosen, where, calibration, point))
        print(f"llmcompressor  {measured[-1]:8.3f} s a layer, {point.label}, {peak(where)}", flush=True)
    total = len(INTEGERS) * sum(measured) / len(measured)
    print(f"llmcompressor  {total:8.3f} s a layer for {len(INTEGERS)} variants, from {len(measured)} of them")


if __name__ == "__main__":
    main()
