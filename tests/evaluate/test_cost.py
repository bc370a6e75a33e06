"""What running a model costs: the cache's formula, its measured bytes, and the clock."""

from __future__ import annotations

import json
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hemorrhage.compress.__main__ import compress
from hemorrhage.evaluate import cost
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import read_manifest
from tests import tiny_mamba


def variant(tiny: Path, out: Path, method: str, **settings: Any) -> Path:
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    compress(out, "v", tiny, None, None, [], spec)
    assert "failure" not in read_manifest(out)
    return out


def test_the_papers_cache() -> None:
    """OPT-30B at batch 128 and length 1024 in 16 bit: 180.39e9 bytes."""
    found = cost.kv_bytes(2, 128, 1024, 48, 7168)
    assert found == 180_388_626_432
    assert round(found / 1e9, 2) == 180.39
    literal = sum(2 for _ in ("keys", "values") for _layer in range(48)) * 128 * 1024 * 7168
    assert found == literal


def test_the_cost_of_a_model(tiny: Path) -> None:
    model = load(tiny)
    found = cost.measure(model)
    for name in ("prefill", "decode"):
        assert len(found[name]) == cost.REPETITIONS
        assert min(found[name]) > 0
    assert found["batch"] * found["length"] == 64
    assert found["threads"] == torch.get_num_threads()
    assert found["dtype"] == "float32"
    # Keys and values of 5 layers, 4 heads of 8 channels, 64 tokens and those that were decoded.
    tokens = found["length"] + found["new_tokens"]
    assert found["kv_bytes_formula"] == 2 * 4 * tokens * 5 * 4 * 8
    assert found["kv_bytes"] == found["kv_bytes_formula"]
    assert json.loads(json.dumps(found)) == found
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert parameters < found["peak_bytes"] < 1024**4


def test_what_an_engine_would_compute_otherwise_is_not_timed(tiny: Path) -> None:
    timed, untimed = cost.measure(load(tiny)), cost.measure(load(tiny), is_timed=False)
    assert timed.keys() - untimed.keys() == {"prefill", "decode"}
    assert untimed["kv_bytes"] == timed["kv_bytes"]


def test_the_cache_is_counted_tensor_by_tensor() -> None:
    cache = DynamicCache()
    for layer in range(3):
        cache.update(
            torch.zeros(2, 4, 7, 8, dtype=torch.bfloat16), torch.zeros(2, 4, 7, 8, dtype=torch.bfloat16), layer
        )
    assert cost.cache_bytes(cache) == cost.kv_bytes(2, 2, 7, 3, 4 * 8)


def test_narrower_layers_cache_less(tiny: Path, tmp_path: Path) -> None:
    settings = {"removed": 0.3, "importance": "magnitude", "protect_first": 1, "protect_last": 1}
    found = cost.measure(load(variant(tiny, tmp_path / "o", "width", **settings), base=tiny))
    assert found["kv_bytes"] == found["kv_bytes_formula"] < cost.measure(load(tiny))["kv_bytes"]


def test_a_state_space_model_caches_no_keys() -> None:
    found = cost.measure(tiny_mamba.new_model().eval())
    assert found["kv_bytes_formula"] == 0
    assert found["kv_bytes"] >= 4 * 4 * 128 * (8 + 4), "4 layers' states and convolutions, 128 channels wide"


def test_a_run_reads_the_prompt_and_decodes_behind_it(tiny: Path) -> None:
    """Greedily: the cache is that of generate, and its tokens are the last of them."""
    model: Any = load(tiny)
    prompt = torch.randint(3, 500, (1, 12), generator=torch.Generator().manual_seed(0))
    reading, decoding, cache = cost._run(model, prompt, 5)
    assert min(reading, decoding) > 0
    written = model.generate(prompt, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, eos_token_id=None)
    for ours, theirs in zip(cache.layers, written.past_key_values.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys)


def _before_and_measured(tiny: Path) -> tuple[int, cost.Cost]:
    big = torch.zeros(200 * 1024**2, dtype=torch.uint8)
    big += 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del big
    return before, cost.measure(load(tiny))


def test_the_peak_is_of_the_run(tiny: Path) -> None:
    """What was there before and is gone is no part of it.

    In a process of its own: what the allocator keeps is set for the whole process by whoever loads a large model.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        before, measured = processes.submit(_before_and_measured, tiny).result(timeout=300)
    if measured["peak_of"] == "run":
        assert measured["peak_bytes"] < before - 100 * 1024**2


def test_costs_of_dequantized_copies_are_theoretical(tiny: Path, tmp_path: Path) -> None:
    dense = "weights: a dequantized dense copy computes"
    assert cost.theoretical(variant(tiny, tmp_path / "a", "rtn", bits=4, group_size="channel")) == dense
    assert cost.theoretical(variant(tiny, tmp_path / "b", "codebook", type="nf4", block_size=64)) == dense
    assert cost.theoretical(variant(tiny, tmp_path / "h", "hqq", bits=4, group_size="channel")) == dense
    assert cost.theoretical(variant(tiny, tmp_path / "c", "svd", removed=0.2, whiten=False)) == ""
    assert cost.theoretical(variant(tiny, tmp_path / "d", "llama_pro", added=0.2)) == ""
    assert cost.theoretical(variant(tiny, tmp_path / "e", "magnitude", sparsity=0.5)).startswith("masks: ")
    assert cost.theoretical(variant(tiny, tmp_path / "f", "kv_cache", bits=4, group_size=8)).startswith("cache: ")
    both = cost.theoretical(variant(tiny, tmp_path / "g", "activations"))
    assert both.startswith("speed: ")
    assert both.endswith(f"; {dense}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bytes_follow_the_dtype(tiny: Path, dtype: str) -> None:
    found = cost.measure(load(tiny, dtype))
    assert found["dtype"] == dtype
    assert found["kv_bytes"] == found["kv_bytes_formula"] == (2 if dtype == "bfloat16" else 4) * 2 * 68 * 5 * 32
