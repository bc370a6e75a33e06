"""Diagnostics inside the network against slow literal references, identities and planted damage."""

from __future__ import annotations

import itertools
import math
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
from hemorrhage.compress.methods.moe import routing, upcycling
from hemorrhage.compress.methods.structured_pruning import slicegpt
from hemorrhage.compress.methods.weight_quantization import rotation
from hemorrhage.compress.solvers.stack import rearrange
from hemorrhage.evaluate.diagnostics import attention, cascade, residual
from hemorrhage.evaluate.diagnostics import collect as inside
from hemorrhage.evaluate.diagnostics.collect import METRICS, base_side, measure
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.experts import mixtures, unfuse
from tests import tiny_mamba, tiny_moe
from tests.calibration import calibrated

ERRORS = ("relative_error", "local_error", "inherited_error", "embedding_error")


def drawn(vocabulary: int, n: int = 3, length: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, vocabulary, (n, length), generator=generator, dtype=torch.int32)


@pytest.fixture(scope="module")
def windows() -> Tensor:
    return drawn(500)


@pytest.fixture(scope="module")
def of_base(tiny: Path, windows: Tensor) -> dict[str, Tensor]:
    return base_side(load(tiny), windows)


@pytest.fixture(scope="module")
def damaged(tiny: Path) -> Any:
    return noisy(tiny, 0.3)


@pytest.fixture(scope="module")
def table(damaged: Any, of_base: dict[str, Tensor]) -> pd.DataFrame:
    return measure(damaged, of_base, None, ablate=True)


def noisy(tiny: Path, share: float) -> Any:
    """Every linear layer of the blocks with noise of ``share`` of its weights' size."""
    model = load(tiny)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in blocks(model).parameters():
            if parameter.dim() == 2:
                parameter += share * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def value(table: pd.DataFrame, metric: str, layer: int = -1, window: int = -1, head: int = -1) -> float:
    found = table[
        (table.metric == metric) & (table.layer == layer) & (table.window == window) & (table["head"] == head)
    ]
    assert len(found) == 1, f"{metric} {layer} {window} {head}: {len(found)} rows"
    return float(found.value.iloc[0])


def of(table: pd.DataFrame, metric: str, **where: int) -> pd.Series:
    found = table[table.metric == metric]
    for column, wanted in where.items():
        found = found[found[column] == wanted]
    assert len(found), metric
    return found.value


def states_of(model: Any, tokens: Tensor) -> list[Tensor]:
    """What enters each block and leaves the last, by hooks of torch: float64 [n, T, d]."""
    seen: list[Tensor] = []
    hooks = [model.model.layers[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].double()))]
    for layer in model.model.layers:
        hooks.append(layer.register_forward_hook(lambda _, __, out: seen.append(out.double())))
    with torch.no_grad():
        model(tokens.long())
    for hook in hooks:
        hook.remove()
    return seen


def maps_of(folder: Path, change: Any, tokens: Tensor) -> list[Tensor]:
    model = load(folder)
    model.set_attn_implementation("eager")
    change(model)
    with torch.no_grad():
        return list(model(tokens.long(), output_attentions=True).attentions)


# The formulas, one entry at a time.


def test_attention_metrics_against_loops(tiny: Path, damaged: Any, table: pd.DataFrame, windows: Tensor) -> None:
    def entropy(row: list[float]) -> float:
        return -sum(a * math.log(a) for a in row if a > 0)

    before = maps_of(tiny, lambda model: None, windows)
    after = maps_of(tiny, lambda model: model.load_state_dict(damaged.state_dict()), windows)
    for layer, window, head in ((0, 0, 0), (2, 1, 5), (4, 2, 7)):
        p, q = (maps[layer][window, head].double() for maps in (before, after))
        found: dict[str, list[float]] = {"entropy": [], "sink": [], "distance": [], "js": []}
        for i in range(1, p.shape[0]):
            old, new = p[i, : i + 1].tolist(), q[i, : i + 1].tolist()
            found["entropy"].append(entropy(new) / math.log(i + 1))
            found["sink"].append(new[0])
            found["distance"].append(sum(a * (i - j) for j, a in enumerate(new)))
            middle = [(a + b) / 2 for a, b in zip(old, new, strict=True)]
            found["js"].append(entropy(middle) - (entropy(old) + entropy(new)) / 2)
        for name, values in found.items():
            ours = value(table, f"attention_{name}", layer, window, head)
            assert ours == pytest.approx(sum(values) / len(values), rel=1e-4, abs=2e-6), name
    assert 1e-3 < of(table, "attention_js").mean() < math.log(2)
    assert of(table, "attention_js").between(0, math.log(2)).all()


def test_the_divergence_of_disjoint_maps_is_ln_2() -> None:
    maps = torch.eye(6)[None]
    shifted = torch.eye(6).roll(1, 0)[None]
    shifted[0, 0] = maps[0, 0]
    found = attention.divergence(attention.triangle(maps), attention.triangle(shifted), 6)
    assert found.item() == pytest.approx(math.log(2))


def test_cascade_against_loops(tiny: Path, damaged: Any, table: pd.DataFrame, windows: Tensor) -> None:
    x, y = states_of(load(tiny), windows), states_of(damaged, windows)

    def relative(a: Tensor, b: Tensor) -> float:
        return float(np.mean([float((s - t).norm() / s.norm()) for s, t in zip(a, b, strict=True)]))

    for layer, window in ((0, 0), (3, 1), (4, 2)):
        with torch.no_grad():
            positions = damaged.model.rotary_emb(x[layer].float(), torch.arange(windows.shape[1])[None])
            alone = damaged.model.layers[layer](x[layer].float(), position_embeddings=positions).double()[window]
        clean, a, b = x[layer][window], x[layer + 1][window], y[layer + 1][window]
        error, before = relative(a, b), relative(clean, y[layer][window])
        assert value(table, "relative_error", layer, window) == pytest.approx(error, rel=1e-4)
        assert value(table, "local_error", layer, window) == pytest.approx(relative(a, alone), rel=1e-4)
        inherited = error - relative(a, alone)
        assert value(table, "inherited_error", layer, window) == pytest.approx(inherited, rel=1e-3, abs=1e-5)
        noise = 10 * math.log10(float(a.flatten().var(correction=0) / (a - b).flatten().var(correction=0)))
        assert value(table, "sqnr", layer, window) == pytest.approx(noise, abs=1e-3)
        written = 10 * math.log10(float((a - clean).var() / (a - alone).var()))
        assert value(table, "local_sqnr", layer, window) == pytest.approx(written, abs=1e-3)
        cosines = [float(s @ t / (s.norm() * t.norm())) for s, t in zip(a, b, strict=True)]
        assert value(table, "cosine", layer, window) == pytest.approx(np.mean(cosines), rel=1e-5)
        if layer:
            assert value(table, "error_amplification", layer, window) == pytest.approx(error / before, rel=1e-3)
    assert not len(table[(table.metric == "error_amplification") & (table.layer == 0)]), "nothing over no error"
    for window in range(3):
        errors = [relative(x[layer][window], y[layer][window]) for layer in range(1, 6)]
        mean = np.mean([math.log(b / a) for a, b in itertools.pairwise(errors)])
        assert value(table, "log_amplification", -1, window) == pytest.approx(mean, abs=1e-4)


def test_unbiased_cka_against_sums_over_tokens(table: pd.DataFrame, tiny: Path, damaged: Any, windows: Tensor) -> None:
    """Of HSIC the U-statistic itself: the mean over all four different tokens."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 7, 9, generator=generator) for _ in range(2))
    y = y + x

    def hsic(a: Tensor, b: Tensor) -> float:
        k, l = (z[0].double() @ z[0].double().T for z in (a, b))  # noqa: E741
        total = number = 0.0
        n = len(k)
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total += float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]))
                            number += 1
        return total / number

    wanted = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert cascade.cka(x, y).item() == pytest.approx(wanted, rel=1e-4)
    a, b = states_of(load(tiny), windows)[3].float(), states_of(damaged, windows)[3].float()
    assert value(table, "cka", 2, 1) == pytest.approx(cascade.cka(a, b)[1].item(), rel=1e-4)


def test_cka_with_more_tokens_than_channels_is_the_textbooks() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, 40, 6, generator=generator), torch.randn(1, 40, 5, generator=generator)
    a, b = (z[0].numpy().astype(float) - z[0].numpy().astype(float).mean(0) for z in (x, y))
    wanted = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert cascade.cka(x, y).item() == pytest.approx(wanted, rel=1e-5)
    turned = x @ torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q * 3 + 1
    assert cascade.cka(x, turned).item() == pytest.approx(1, abs=1e-5)
    wide = torch.randn(1, 20, 500, generator=generator), torch.randn(1, 20, 500, generator=generator)
    assert abs(cascade.cka(*wide).item()) < 0.2, "the biased form would say 0.96"


def test_logit_lens_against_the_head_by_hand(tiny: Path, damaged: Any, table: pd.DataFrame, windows: Tensor) -> None:
    with torch.no_grad():
        p = load(tiny)(windows.long()).logits.double().log_softmax(-1)
        y = states_of(damaged, windows)
        for layer in (0, 3):
            normed = damaged.model.norm(y[layer + 1].float())
            q = damaged.lm_head(normed).double().log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1)
            for window in range(3):
                wanted = float(kl[window, [7, 23]].mean())
                assert value(table, "lens_kl", layer, window) == pytest.approx(wanted, rel=1e-4)
        q = damaged(windows.long()).logits.double().log_softmax(-1)
        final = (p.exp() * (p - q)).sum(-1)[0, [7, 23]].mean()
    assert value(table, "lens_kl", 4, 0) == pytest.approx(float(final), rel=1e-4)


def test_residual_metrics_against_loops(damaged: Any, table: pd.DataFrame, windows: Tensor) -> None:
    y = states_of(damaged, windows)
    for layer, window in ((0, 0), (4, 2)):
        found: dict[str, list[float]] = {name: [] for name in ("block_influence", "angular_distance")}
        found |= {"norm_growth": [], "write_norm": []}
        for s, t in zip(y[layer][window], y[layer + 1][window], strict=True):
            cosine = float(s @ t / (s.norm() * t.norm()))
            found["block_influence"].append(1 - cosine)
            found["angular_distance"].append(math.acos(cosine) / math.pi)
            found["norm_growth"].append(float(t.norm() / s.norm()))
            found["write_norm"].append(float((t - s).norm() / s.norm()))
        for name, values in found.items():
            assert value(table, name, layer, window) == pytest.approx(np.mean(values), rel=1e-4), name
        squares = torch.linalg.svdvals(y[layer + 1][window]) ** 2
        share = (squares / squares.sum()).tolist()
        rank = math.exp(-sum(s * math.log(s) for s in share if s > 0))
        assert value(table, "effective_rank", layer, window) == pytest.approx(rank, rel=1e-3)
    assert residual.effective_rank(torch.eye(8)[None]).item() == pytest.approx(8)
    assert residual.effective_rank(torch.ones(1, 8, 3)).item() == pytest.approx(1, abs=1e-4)


def test_self_repair_against_ablation_by_hand(damaged: Any, table: pd.DataFrame, windows: Tensor) -> None:
    tokens = windows.long()
    y = states_of(damaged, windows)
    norm, head = damaged.model.norm, damaged.lm_head.weight.double()

    def right(hidden: Tensor, window: int) -> Tensor:
        logits = hidden[window].double() @ head.T
        return torch.stack([logits[t, tokens[window, t + 1]] - logits[t].mean() for t in range(len(logits) - 1)])

    with torch.no_grad():
        root = y[-1].square().mean(-1, keepdim=True).add(norm.variance_epsilon).sqrt()
        for layer, window in ((1, 0), (4, 2)):
            written = y[layer + 1] - y[layer]
            direct = float(right(norm.weight * written / root, window).mean())
            block = damaged.model.layers[layer]
            block.forward = lambda hidden, **_: hidden
            ablated = damaged.model(tokens).last_hidden_state
            del block.forward
            whole = damaged.model(tokens).last_hidden_state
            total = float((right(whole, window) - right(ablated, window)).mean())
            assert value(table, "direct_effect", layer, window) == pytest.approx(direct, rel=1e-3, abs=1e-5)
            assert value(table, "total_effect", layer, window) == pytest.approx(total, rel=1e-3, abs=1e-5)
            assert value(table, "self_repair", layer, window) == pytest.approx(1 - total / direct, rel=1e-2, abs=1e-3)
    # Behind the last block nothing can repair but the norm.
    assert not len(table[(table.metric == "self_repair") & (table.layer == -1)])


# Identities.


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
    inside.INSIDE.validate(table)
    heads = table[table.metric == "attention_js"]
    assert sorted(heads["head"].unique()) == list(range(8))
    assert len(heads) == 5 * 8 * 3
    assert all(value.is_contiguous() and value.device.type == "cpu" for value in of_base.values())
    assert of_base["states"].shape == (6, 3, 24, 64)
    assert of_base["lens"].shape == (3, 2, 512)
    assert inside.protocol(3, 24) == "windows=3 window=24 lens_stride=16 dtype=float32"


def test_noise_grows(tiny: Path, of_base: dict[str, Tensor], table: pd.DataFrame) -> None:
    little = measure(noisy(tiny, 0.03), of_base, None, ablate=False)
    for metric in ("relative_error", "local_error", "attention_js", "lens_kl"):
        last = {"layer": 4}
        assert of(little, metric, **last).mean() < of(table, metric, **last).mean(), metric
    means = [of(little, "relative_error", layer=layer).mean() for layer in range(5)]
    assert means[4] > means[0], "the error of one block is carried on by the others"
    assert of(little, "inherited_error", layer=4).min() > 0
    assert of(little, "sqnr", layer=4).min() > of(table, "sqnr", layer=4).max()


# Planted damage.


def test_a_silenced_block_is_found_where_it_is(tiny: Path, of_base: dict[str, Tensor]) -> None:
    model = load(tiny)
    with torch.no_grad():
        blocks(model)[2].self_attn.o_proj.weight.zero_()
        blocks(model)[2].mlp.down_proj.weight.zero_()
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
        blocks(model)[1].mlp.down_proj.weight[0, 0] = torch.nan
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
    with pytest.raises(RuntimeError, match="stop"), attention.recorded(model):
        raise RuntimeError("stop")
    assert left_as_it_was(model)


def test_bad_input_is_refused_in_one_line(tiny: Path, of_base: dict[str, Tensor], windows: Tensor) -> None:
    model = load(tiny)
    for source in ([0, 1, 2, 3], [0, 1, 2, 3, 5], [0, 1, 2, 3, -1]):
        with pytest.raises(ValueError, match="5 places among the base's 5 blocks"):
            measure(model, of_base, source, ablate=False)
    with pytest.raises(ValueError, match="the diagnostics need 2 or more"):
        base_side(model, windows[:, :1])
    with pytest.raises(ValueError, match="a vocabulary of 512, and the base's has 500"):
        measure(model, of_base | {"lens": of_base["lens"][..., :500]}, None, ablate=False)


# Models of other depth.


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


# Models of other width, in another basis, with roundings, with experts, without attention.


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


def test_factored_layers_and_bfloat16(
    tiny: Path, calibration: Path, tmp_path: Path, of_base: dict[str, Tensor]
) -> None:
    found = measure(made(tiny, calibration, tmp_path / "o", "svd", {"removed": 0.2}), of_base, None, ablate=False)
    assert of(found, "local_error").min() > 0.01
    narrow = measure(load(tiny, "bfloat16"), of_base, None, ablate=True)
    assert of(narrow, "local_error").max() < 0.05


@pytest.mark.parametrize("kind", sorted(tiny_moe.OWN))
def test_experts_against_counting(kind: str) -> None:
    model = tiny_moe.new_model(kind).eval()
    unfuse(model)
    tokens = drawn(500, 2, 16)
    of_base = base_side(model, tokens)
    found = measure(model, of_base, None, ablate=False)
    mixture = next(iter(mixtures(model).values()))
    seen: list[Tensor] = []
    hook = mixture.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model(tokens.long())
    hook.remove()
    with torch.no_grad():
        probability = (seen[0].double() @ mixture.gate.weight.double().T).softmax(-1)
    counts, entropies = [0] * 4, []
    for token in probability[1]:
        entropies.append(-sum(p * math.log(p) for p in token.tolist()) / math.log(4))
    for token in probability.flatten(0, 1):
        for expert in sorted(range(4), key=lambda e: -float(token[e]))[:2]:
            counts[expert] += 1
    assert value(found, "routing_entropy", 0, 1) == pytest.approx(np.mean(entropies), rel=1e-4)
    assert value(found, "expert_load_cv", 0) == pytest.approx(np.std(counts) / np.mean(counts), rel=1e-6)
    assert value(found, "experts_unused", 0) == counts.count(0) / 4
    assert (of(found, "routing_agreement") == 1).all()
    assert (of(found, "experts_dropped") == 0).all()
    with torch.no_grad():
        mixture.gate.weight[:] = mixture.gate.weight[[2, 3, 0, 1]]
    shuffled = measure(model, of_base, None, ablate=False)
    both = [len({(e + 2) % 4 for e in chosen} & set(chosen)) / 2 for chosen in of_base["routing.0"][1].tolist()]
    assert value(shuffled, "routing_agreement", 0, 1) == pytest.approx(np.mean(both))


def test_dropped_experts_and_experts_of_a_dense_base(tiny: Path, of_base: dict[str, Tensor]) -> None:
    model = tiny_moe.new_model("mixtral").eval()
    unfuse(model)
    own = base_side(model, drawn(500, 2, 16))
    routing.alter(model, routing.Settings(alteration="drop", amount=0.5, choose="random"), Context())
    found = measure(model, own, None, ablate=False)
    assert (of(found, "experts_dropped") == 0.5).all()
    assert "routing_agreement" not in set(found.metric)
    copied = load(tiny)
    upcycling.alter(copied, upcycling.Settings(), Context())
    found = measure(copied, of_base, None, ablate=False)
    assert of(found, "local_error").max() < 1e-5
    assert {"routing_entropy", "expert_load_cv"} <= set(found.metric)
    assert "experts_dropped" not in set(found.metric)


def test_a_state_space_model_has_no_attention() -> None:
    model = tiny_mamba.new_model().eval()
    tokens = drawn(500, 2, 16)
    of_base = base_side(model, tokens)
    assert not [name for name in of_base if name.startswith("attention")]
    with torch.no_grad():
        blocks(model)[1].mixer.out_proj.weight.zero_()
    found = measure(model, of_base, None, ablate=True)
    assert not [name for name in set(found.metric) if name.startswith("attention")]
    assert [of(found, "local_error", layer=layer).max() > 0 for layer in range(4)] == [False, True, False, False]
    assert {"lens_kl", "effective_rank", "total_effect"} <= set(found.metric)
