"""Cost of running a model here: tokens per second, bytes of its cache, peak memory.

The numbers are those of this engine, transformers in the dtype the model was loaded in. Where a checkpoint's weights
are packed or masked, what computes is a dense copy of them, and the gain that the method is about stays theoretical
(``theoretical``). Its speed would say nothing: it is not measured, the bytes are.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hemorrhage.runtime.artifact import read_manifest

BATCH = 1
LENGTH = 64
"""Tokens of the prompt that is read."""

NEW_TOKENS = 4
"""Tokens that are decoded after it, each by a pass of its own."""

REPETITIONS = 3
"""Runs that count, after one that does not, to warm up."""


class Cost(TypedDict, total=False):
    """``cost.json``; see ``measure``, and ``theoretical`` for its entry of that name."""

    prefill: list[float]
    decode: list[float]
    batch: int
    length: int
    new_tokens: int
    threads: int
    dtype: str
    peak_bytes: int
    peak_of: str
    kv_bytes: int
    kv_bytes_formula: int
    theoretical: str


def measure(model: PreTrainedModel, is_timed: bool = True) -> Cost:
    """Run ``model`` on a batch of one prompt; see docs/formats.md, ``cost.json``.

    Unless ``is_timed``, once and without speeds.
    ``prefill``: prompt tokens per second until the first new token is known, ``decode``: new tokens per second, a
    number for each repetition; ``kv_bytes``: of the tensors that the cache holds in the end (a state-space model's
    states are among them), ``kv_bytes_formula``: those the paper's formula has for it; ``peak_bytes``: the most
    memory that the process held meanwhile, the model included, ``peak_of`` saying of what: ``device``, ``run``, or
    ``process``, all since its start, where the system has no number for the run.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    prompt = torch.randint(vocabulary, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0)).to(model.device)
    _reset_peak(model.device)
    if is_timed:
        _run(model, prompt, 1)
    speeds: Cost = {"prefill": [], "decode": []}
    for _ in range(REPETITIONS if is_timed else 1):
        reading, decoding, cache = _run(model, prompt, NEW_TOKENS)
        speeds["prefill"].append(prompt.numel() / reading)
        speeds["decode"].append(BATCH * NEW_TOKENS / decoding)
    peak, of = _peak(model.device)
    dtype = next(model.parameters()).dtype
    return {
        **(speeds if is_timed else {}),
        "batch": BATCH,
        "length": LENGTH,
        "new_tokens": NEW_TOKENS,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "peak_bytes": peak,
        "peak_of": of,
        "kv_bytes": cache_bytes(cache),
        "kv_bytes_formula": sum(
            dtype.itemsize * BATCH * (LENGTH + NEW_TOKENS) * width for width in _cached_widths(cache)
        ),
    }


def kv_bytes(element: int, batch: int, length: int, layers: int, width: int) -> int:
    """Return the bytes of a cache of keys and values, ``2 · element · B · S · L · d_kv``, ``element`` bytes a number.

    ``width`` is that of a token's keys in a layer, key-value heads times head width. The paper's case (arXiv
    2503.23924): OPT-30B, 48 layers of 7168, at batch 128 and length 1024 in 16 bit: 180.39e9.
    """
    return 2 * element * batch * length * layers * width


def cache_bytes(cache: Any) -> int:
    """Return the bytes of the tensors that a transformers cache holds."""
    return sum(value.untyped_storage().nbytes() for layer in cache.layers for value in _tensors(vars(layer)))


def theoretical(checkpoint: Path) -> str:
    """Return why the costs that are measured are not those of an engine that uses what the method gains, or ''."""
    reasons = [read_manifest(checkpoint).get("theoretical") or ""]
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    bench = config.get("hemorrhage") or {}
    scheme = config.get("quantization_config") or {}
    # Low rank computes as it is stored.
    forms = {*(bench.get("forms") or ())} - {"low_rank"}
    packed = scheme.get("config_groups") or scheme.get("load_in_4bit") or forms - {"rotated"}
    if packed or bench.get("form") == "gguf_file":
        reasons.append("weights: a dequantized dense copy computes")
    elif forms:
        reasons.append("weights: a dense copy, turned back, computes")
    return "; ".join(filter(None, reasons))


def _run(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> tuple[float, float, Any]:
    """Return the seconds of reading ``prompt`` [batch, length] and of decoding after it greedily, and the cache."""
    with torch.inference_mode():
        _wait(model.device)
        start = time.perf_counter()
        token, name, cache = _next(model, prompt, {})
        _wait(model.device)
        middle = time.perf_counter()
        for _ in range(new_tokens):
            token, name, cache = _next(model, token, {name: cache})
        _wait(model.device)
    return middle - start, time.perf_counter() - middle, cache


def _next(model: PreTrainedModel, tokens: Tensor, cache: Mapping[str, Any]) -> tuple[Tensor, str, Any]:
    """Return the top-1 tokens [batch, 1] after ``tokens``, and the cache under the name the model gives it."""
    output: Any = model(input_ids=tokens, use_cache=True, logits_to_keep=1, **cache)
    name = next((name for name in ("past_key_values", "cache_params") if output.get(name) is not None), None)
    if name is None:
        raise ValueError(f"{type(model).__name__} returns no cache")
    return output.logits[:, -1:].argmax(-1), name, output[name]


def _cached_widths(cache: Any) -> list[int]:
    """Return how many numbers a token's keys and values have in every layer that caches some, whatever makes them."""
    layers = [layer for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor)]
    return [cached.shape[1] * cached.shape[-1] for layer in layers for cached in (layer.keys, layer.values)]


def _tensors(values: Mapping[Any, Any]) -> list[Tensor]:
    tensors = []
    for value in values.values():
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, dict):
            tensors += _tensors(value)
    return tensors


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _linux():
        # proc(5): 5 sets the peak of the resident set size to what is resident now.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "device"
    if _linux():
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024, "run"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"


def _linux() -> bool:
    return Path("/proc/self/clear_refs").exists()
