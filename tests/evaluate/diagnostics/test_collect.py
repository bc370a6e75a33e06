"""What is measured inside of a variant: where errors are found, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.depth_expansion import depth_up_scaling, duplication, llama_pro
from hemorrhage.compress.methods.structured_pruning import slicegpt
from hemorrhage.compress.methods.weight_quantization import rotation
from hemorrhage.compress.solvers.stack import rearrange
from hemorrhage.evaluate.diagnostics import attention, cascade, collect
from hemorrhage.evaluate.diagnostics.collect import METRICS, base_side, measure
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from tests import tiny_mamba
from tests.calibration import calibrated
from tests.evaluate.diagnostics.literal import drawn, noisy, of
from tests.layers import block_of

ERRORS = ("relative_error", "local_error", "inherited_error", "embedding_error")


def test_the_base_does_not_differ_from_itself(tiny: Path, of_base: dict[str, Tensor]) -> None:
    found = measure(load(tiny), of_base, None, ablate=False)
    for metric in (*ERRORS, "attention_js", "attention_js_mean_map"):
        assert (of(found, metric) == 0).all(), metric
    for metric in ("cosine", "cka"):
        assert of(found, metric).to_numpy() == pytest.approx(1, abs=1e-9)
    for metric in ("sqnr", "local_sqnr"):
        assert (of(found, metric) == cascade.EXACT).all()
    assert (of(found, "lens_kl", layer=4) == 0).all()
    assert of(found, "lens_kl", layer=0).min() > 0.1
    assert not set(found.metric) & {"error_amplification", "log_amplification", "self_repair", "routing_entropy"}


def test_everything_has_a_description_and_its_own_row(table: pd.DataFrame, of_base: dict[str, Tensor]) -> None:
    assert set(table.metric) <= set(METRICS)
    collect.DIAGNOSTICS.validate(table)
    heads = table[table.metric == "attention_js"]
    assert sorted(heads["head"].unique()) == list(range(8))
    assert len(heads) == 5 * 8 * 3
    assert all(value.is_contiguous() and value.device.type == "cpu" for value in of_base.values())
    assert of_base["states"].shape == (6, 3, 24, 64)
    assert of_base["lens"].shape == (3, 2, 512)
    assert collect.protocol(3, 24) == "windows=3 window=24 lens_stride=16 dtype=float32"


def test_noise_grows(tiny: Path, of_base: dict[str, Tensor], table: pd.DataFrame) -> None:
    little = measure(noisy(tiny, 0.03), of_base, None, ablate=False)
    for metric in ("relative_error", "local_error", "attention_js", "lens_kl"):
        last = {"layer": 4}
        assert of(little, metric, **last).mean() < of(table, metric, **last).mean(), metric
    means = [of(little, "relative_error", layer=layer).mean() for layer in range(5)]
    assert means[4] > means[0], "the error of one block is carried on by the others"
    assert of(little, "inherited_error", layer=4).min() > 0
    assert of(little, "sqnr", layer=4).min() > of(table, "sqnr", layer=4).max()


def test_a_silenced_block_is_found_where_it_is(tiny: Path, of_base: dict[str, Tensor]) -> None:
    model = load(tiny)
    with torch.no_grad():
        block_of(model, 2).self_attn.o_proj.weight.zero_()
        block_of(model, 2).mlp.down_proj.weight.zero_()
    found = measure(model, of_base, None, ablate=True)
    for layer in range(5):
        local = of(found, "local_error", layer=layer)
        assert (local == 0).all() if layer != 2 else local.min() > 0.1
        error = of(found, "relative_error", layer=layer)
        assert (error == 0).all() if layer < 2 else error.min() > 0.05
    assert of(found, "local_sqnr", layer=2).to_numpy() == pytest.approx(0, abs=1e-5)
    assert (of(found, "write_norm", layer=2) == 0).all()
    assert (of(found, "block_influence", layer=2).abs() < 1e-12).all()
    assert (of(found, "direct_effect", layer=2) == 0).all()
    assert (of(found, "total_effect", layer=2) == 0).all()
    assert not len(found[(found.metric == "self_repair") & (found.layer == 2)])


def test_shuffled_scales_are_near_0_db(tiny: Path, of_base: dict[str, Tensor], tmp_path: Path) -> None:
    """The scales of one block's packed weights in another order: what it writes is noise."""
    from safetensors.torch import load_file, save_file

    settings = {"bits": 8, "group_size": 4, "symmetric": True}
    spec = {"sweep": "s", "method": "rtn", "settings": settings, "seed": 0}
    compress(tmp_path / "out", "v", tiny, None, None, [], spec)
    whole = measure(load(tmp_path / "out", base=tiny), of_base, None, ablate=False)
    assert of(whole, "local_sqnr").min() > 20
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name, scale in tensors.items():
        if "layers.3." in name and name.endswith("weight_scale"):
            order = torch.randperm(scale.numel(), generator=generator)
            tensors[name] = scale.flatten()[order].view_as(scale)
    save_file(tensors, file, {"format": "pt"})
    found = measure(load(tmp_path / "out", base=tiny), of_base, None, ablate=False)
    assert of(found, "local_sqnr", layer=3).max() < 6
    for layer in (0, 1, 2, 4):
        assert of(found, "local_sqnr", layer=layer).min() > 20


def test_states_that_are_not_finite_are_an_error(tiny: Path, of_base: dict[str, Tensor], windows: Tensor) -> None:
    model = load(tiny)
    with torch.no_grad():
        block_of(model, 1).mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="block 1: the states that leave it are not finite"):
        measure(model, of_base, None, ablate=False)
    assert left_as_it_was(model)
    with pytest.raises(ValueError, match="block 1"):
        base_side(model, windows)
    assert left_as_it_was(model)


def left_as_it_was(model: Any) -> bool:
    hooked = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    replaced = [block for block in blocks(model) if "forward" in vars(block)]
    return not hooked and not replaced and model.config._attn_implementation == "sdpa"


def test_the_model_is_left_as_it_was(tiny: Path, of_base: dict[str, Tensor]) -> None:
    model = load(tiny)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    measure(model, of_base, None, ablate=True)
    assert left_as_it_was(model)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    with pytest.raises(RuntimeError, match="stop"), attention.record_attention(model):
        raise RuntimeError("stop")
    assert left_as_it_was(model)


def test_bad_input_is_refused_in_one_line(tiny: Path, of_base: dict[str, Tensor], windows: Tensor) -> None:
    model = load(tiny)
    sources: list[list[int | None]] = [[0, 1, 2, 3], [0, 1, 2, 3, 5], [0, 1, 2, 3, -1]]
    for source in sources:
        with pytest.raises(ValueError, match="5 indices among the base's 5 blocks"):
            measure(model, of_base, source, ablate=False)
    with pytest.raises(ValueError, match="the diagnostics need 2 or more"):
        base_side(model, windows[:, :1])
    with pytest.raises(ValueError, match="a vocabulary of 512, and the base's has 500"):
        measure(model, of_base | {"lens": of_base["lens"][..., :500]}, None, ablate=False)


def test_silent_copies_have_no_error(tiny: Path, of_base: dict[str, Tensor]) -> None:
    model = load(tiny)
    llama_pro.alter(model, llama_pro.Settings(added=0.4), Context())
    found = measure(model, of_base, [0, 1, 1, 2, 3, 4, 4], ablate=False)
    for metric in ERRORS:
        assert (of(found, metric) == 0).all(), metric
    assert (of(found, "write_norm", layer=2) == 0).all()
    assert not len(found[(found.metric == "local_sqnr") & (found.layer == 2)]), "no signal to compare noise with"
    js = [of(found, "attention_js", layer=layer).max() for layer in range(7)]
    assert [value > 0 for value in js] == [False, False, True, False, False, False, True]
    without = measure(model, of_base, [0, 1, None, 2, 3, 4, None], ablate=False)
    for metric in ERRORS:
        assert (of(without, metric) == 0).all(), metric
    assert sorted(without[without.metric == "cka"].layer.unique()) == [0, 1, 3, 4, 5]


def test_copies_that_write_are_where_the_error_is_made(tiny: Path, of_base: dict[str, Tensor]) -> None:
    model = load(tiny)
    duplication.alter(model, duplication.Settings(added=0.2), Context())
    found = measure(model, of_base, [0, 1, 2, 2, 3, 4], ablate=False)
    local = [of(found, "local_error", layer=layer).max() for layer in range(6)]
    assert local[3] > 0.05
    assert max(local[:3] + local[4:]) < 1e-5
    model = load(tiny)
    depth_up_scaling.alter(model, depth_up_scaling.Settings(overlap=0.25), Context())
    found = measure(model, of_base, [0, 1, 2, 3, 1, 2, 3, 4], ablate=False)
    local = [of(found, "local_error", layer=layer).max() for layer in range(8)]
    assert [value > 1e-5 for value in local] == [False] * 4 + [True] + [False] * 3


def test_a_gap_is_found_in_the_block_behind_it(tiny: Path, of_base: dict[str, Tensor]) -> None:
    model = load(tiny)
    rearrange(model, [0, 1, 3, 4])
    found = measure(model, of_base, [0, 1, 3, 4], ablate=False)
    local = [of(found, "local_error", layer=layer).max() for layer in range(4)]
    assert [value > 1e-5 for value in local] == [False, False, True, False]
    alone = measure(model, of_base, None, ablate=False)
    assert not set(alone.metric) & {"relative_error", "cka", "attention_js", "log_amplification"}
    assert {"lens_kl", "attention_entropy", "effective_rank"} <= set(alone.metric)


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("calibration"))


def made(tiny: Path, calibration: Path, out: Path, method: str, settings: dict[str, Any]) -> Any:
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    compress(out, "v", tiny, None, calibration, [], spec)
    return load(out, base=tiny)


def test_pruned_heads_are_compared_by_their_mean(
    tiny: Path, calibration: Path, tmp_path: Path, of_base: dict[str, Tensor]
) -> None:
    settings = {"removed": 0.3, "importance": "magnitude", "protect_first": 1, "protect_last": 1}
    found = measure(made(tiny, calibration, tmp_path / "o", "width", settings), of_base, None, ablate=False)
    of_heads = found[found.metric == "attention_js"]
    assert sorted(of_heads.layer.unique()) == [0, 4]
    assert of(found, "attention_js_mean_map", layer=2).min() > 0
    assert set(found[found.metric == "attention_entropy"].layer) == set(range(5))
    assert of(found, "local_error", layer=2).min() > 0.01


def test_a_sliced_model_keeps_what_no_rotation_changes(
    tiny: Path, calibration: Path, of_base: dict[str, Tensor]
) -> None:
    """What blocks do to the stream is much like in the base, seen in the bases that the blocks themselves have."""
    model = load(tiny)
    slicegpt.alter(model, slicegpt.Settings(removed=0.25), Context(Statistics(calibration, {})))
    found = measure(model, of_base, None, ablate=True)
    assert not set(found.metric) & {*ERRORS, "cosine", "sqnr"}
    assert of(found, "cka").between(0.3, 1).all()
    base = measure(load(tiny), of_base, None, ablate=True)
    last = {"layer": 4}
    assert of(found, "lens_kl", **last).mean() < of(found, "lens_kl", layer=0).mean()
    for metric in ("block_influence", "write_norm", "norm_growth", "direct_effect", "total_effect"):
        ours, theirs = (of(t, metric).to_numpy() for t in (found, base))
        assert np.corrcoef(ours, theirs)[0, 1] > 0.7, metric


def test_a_rotated_network_has_no_error_in_its_own_basis(tiny: Path, of_base: dict[str, Tensor]) -> None:
    model = load(tiny)
    rotation.alter(model, rotation.Settings(bits=8, group_size="channel", transform="quarot"), Context())
    found = measure(model, of_base, None, ablate=False)
    assert not set(found.metric) & {*ERRORS, "cosine", "sqnr"}
    assert of(found, "cka").min() > 0.99
    assert of(found, "attention_js").max() < 0.01
    assert of(found, "lens_kl", layer=4).max() < 0.05


def test_roundings_at_run_time_are_part_of_what_is_measured(
    tiny: Path, calibration: Path, tmp_path: Path, of_base: dict[str, Tensor]
) -> None:
    settings: dict[str, Any] = {"bits": 8, "activations": "token"}
    rounded = measure(made(tiny, calibration, tmp_path / "a", "activations", settings), of_base, None, ablate=False)
    assert of(rounded, "local_error").min() > 1e-4
    for keys, extra in (("token", {}), ("channel", {"residual": 8})):
        settings = {"bits": 2, "group_size": 4, "keys": keys, **extra}
        model = made(tiny, calibration, tmp_path / keys, "kv_cache", settings)
        before = model.config._attn_implementation
        found = measure(model, of_base, None, ablate=False)
        assert model.config._attn_implementation == before
        assert of(found, "attention_js").max() > 1e-4
        assert of(found, "local_error").max() > 1e-4
    model = made(tiny, calibration, tmp_path / "evicted", "eviction", {"score": "key_norm", "ratio": 0.5})
    before = model.config._attn_implementation
    evicted = measure(model, of_base, None, ablate=False)
    assert model.config._attn_implementation == before
    assert of(evicted, "attention_js").min() > 1e-3


def test_factored_layers_and_bfloat16(
    tiny: Path, calibration: Path, tmp_path: Path, of_base: dict[str, Tensor]
) -> None:
    found = measure(made(tiny, calibration, tmp_path / "o", "svd", {"removed": 0.2}), of_base, None, ablate=False)
    assert of(found, "local_error").min() > 0.01
    narrow = measure(load(tiny, "bfloat16"), of_base, None, ablate=True)
    assert of(narrow, "local_error").max() < 0.05


def test_a_state_space_model_has_no_attention() -> None:
    model = tiny_mamba.new_model().eval()
    tokens = drawn(500, 2, 16)
    of_base = base_side(model, tokens)
    assert not [name for name in of_base if name.startswith("attention")]
    with torch.no_grad():
        block_of(model, 1).mixer.out_proj.weight.zero_()
    found = measure(model, of_base, None, ablate=True)
    assert not [name for name in set(found.metric) if name.startswith("attention")]
    assert [of(found, "local_error", layer=layer).max() > 0 for layer in range(4)] == [False, True, False, False]
    assert {"lens_kl", "effective_rank", "total_effect"} <= set(found.metric)
