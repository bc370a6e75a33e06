"""AutoRound: its steps against gradients written out by hand, and against the authors' library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import autoround, rtn
from hemorrhage.compress.solvers.number_formats import FLOATS, layer_total, round_to_nearest
from hemorrhage.models.blocks import blocks
from hemorrhage.models.blockwise import BlockArguments, embed
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.divergence import divergence
from tests.layers import generate, layer_of

WINDOWS, LENGTH = 12, 48


class Windows(Statistics):
    """What AutoRound reads of the statistics."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens

    def tokens(self) -> Tensor:
        return self._tokens


@pytest.fixture(scope="module")
def text(tiny: Path) -> Tensor:
    """Windows that the tiny model itself wrote."""
    model = load(tiny)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begin = torch.full((2 * WINDOWS, 1), model.config.bos_token_id)
        sizes = {"min_new_tokens": LENGTH - 1, "max_new_tokens": LENGTH - 1}
        return generate(model, begin, do_sample=True, top_k=0, pad_token_id=0, **sizes)


def altered(tiny: Path, text: Tensor, seed: int = 0, **settings: Any) -> PreTrainedModel:
    model = load(tiny)
    chosen = autoround.Settings(**{"group_size": 4, "batch": 6, "iterations": 16} | settings)
    autoround.alter(model, chosen, Context(Windows(text[:WINDOWS]), seed))
    return model


def literal(W: Tensor, X: Tensor, width: int, settings: autoround.Settings, picks: list[Tensor]) -> Tensor:
    """Rounded weights after a step for each of ``picks``, with gradients by hand; X [samples, tokens, columns]."""
    half, steps = 2 ** (settings.bits - 1), 2**settings.bits - 1
    G = W.unflatten(1, (-1, width))
    least, most = G.amin(2, keepdim=True).clamp(max=0), G.amax(2, keepdim=True).clamp(min=0)
    V, alpha, beta = torch.zeros_like(G), torch.ones_like(most), torch.ones_like(most)
    best, lowest = torch.empty(0), float("inf")
    for number, picked in enumerate(picks):
        low, high = beta * least, alpha * most
        wider = high >= -low
        s = (2 * torch.maximum(-low, high) if settings.symmetric else high - low) / steps
        z = torch.zeros_like(s) if settings.symmetric else (-half - low / s).round()
        r = (G / s + V).round() + z
        inside = ((r > -half) & (r < half - 1)).to(W.dtype)
        code = r.clamp(-half, half - 1)
        rounded = ((code - z) * s).flatten(1)
        x = X[picked].flatten(0, 1)
        error = x @ (rounded - W).T
        loss = error.pow(2).mean().item()
        if loss < lowest:
            lowest, best = loss, rounded
        g = (2 * error.T @ x / error.numel()).unflatten(1, (-1, width))
        by_s = (g * ((code - z) - inside * G / s)).sum(2, keepdim=True)
        if settings.symmetric:
            by_high, by_low = by_s * 2 / steps * wider, -by_s * 2 / steps * ~wider
        else:
            by_z = (g * s * (inside - 1)).sum(2, keepdim=True)
            by_s = by_s + by_z * low / s**2
            by_high, by_low = by_s / steps, -by_s / steps - by_z / s
        rate = (1 - number / len(picks)) / len(picks)
        V = (V - rate * (g * s * inside).sign()).clamp(-0.5, 0.5)
        alpha = (alpha - rate * (by_high * most).sign()).clamp(0, 1)
        beta = (beta - rate * (by_low * least).sign()).clamp(0, 1)
    return best


@pytest.mark.parametrize(("bits", "width", "symmetric"), [(3, 8, False), (2, 24, False), (3, 8, True)])
def test_the_steps_are_those_of_gradients_by_hand(bits: int, width: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    block = nn.Sequential(nn.Linear(24, 10, bias=False))
    W = torch.randn(10, 24, generator=generator)
    X = torch.randn(8, 5, 24, generator=generator)
    settings = autoround.Settings(bits=bits, group_size=width, symmetric=symmetric, iterations=30, batch=6)
    layer = autoround.Rounding(W, width, settings, torch.float32)
    with torch.no_grad():
        chosen = autoround.draws(8, 6, torch.Generator().manual_seed(4))
        picks = [next(chosen) for _ in range(30)]
        again = torch.Generator().manual_seed(4)
        assert autoround.tune(block, {"0": layer}, X, X @ W.T, BlockArguments(), settings, again)
        expected = literal(W.double(), X.double(), width, settings, picks)
    ours = layer.quantized().dense()
    assert not torch.equal(ours, rtn.quantize(W, width, settings, torch.float32).dense())
    # A gradient that is almost zero can have another sign in another order of the sums.
    assert ((ours - expected).abs() > 1e-4).sum() <= 4


def literal_floats(W: Tensor, X: Tensor, total: float, picks: list[Tensor]) -> Tensor:
    """The same for NVFP4: numbers of E2M1, a scale of E4M3 for 16 weights."""
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]).double()
    G = W.unflatten(1, (-1, 16))
    largest = G.abs().amax(2, keepdim=True)
    V, share = torch.zeros_like(G), torch.ones_like(largest)
    best, lowest = torch.empty(0), float("inf")
    for number, picked in enumerate(picks):
        step = (largest * share / 6 * total).float().to(torch.float8_e4m3fn).double() / total
        x = G / step
        apart = torch.where(x.abs() < 2, 0.5, torch.where(x.abs() < 4, 1.0, 2.0))
        moved = x + apart * V
        code = table[(moved.abs().unsqueeze(-1) - table).abs().argmin(-1)] * moved.sign()
        inside = (code.abs() < 6).to(W.dtype)
        rounded = (code * step).flatten(1)
        given = X[picked].flatten(0, 1)
        error = given @ (rounded - W).T
        loss = error.pow(2).mean().item()
        if loss < lowest:
            lowest, best = loss, rounded
        g = (2 * error.T @ given / error.numel()).unflatten(1, (-1, 16))
        rate = (1 - number / len(picks)) / len(picks)
        by_step = (g * (code - inside * x)).sum(2, keepdim=True)
        V = (V - rate * (g * step * apart * inside).sign()).clamp(-0.5, 0.5)
        share = (share - rate * by_step.sign()).clamp(0.5, 1)
    return best


def test_the_steps_of_a_floating_point_format_are_those_of_gradients_by_hand() -> None:
    generator = torch.Generator().manual_seed(1)
    block = nn.Sequential(nn.Linear(32, 10, bias=False))
    W = torch.randn(10, 32, generator=generator)
    # Of few features and some noise: where all are alike, nothing is better than rounding to nearest.
    X = torch.randn(8, 5, 6, generator=generator) @ torch.randn(6, 32, generator=generator)
    X += 0.1 * torch.randn(8, 5, 32, generator=generator)
    settings = autoround.Settings.model_validate({"format": "nvfp4", "iterations": 30, "batch": 6})
    assert settings.number is not None
    total = layer_total([W], settings.number)
    assert total is not None
    layer = autoround.FloatRounding(W, 16, settings.number, torch.float32, total)
    with torch.no_grad():
        chosen = autoround.draws(8, 6, torch.Generator().manual_seed(4))
        picks = [next(chosen) for _ in range(30)]
        again = torch.Generator().manual_seed(4)
        assert autoround.tune(block, {"0": layer}, X, X @ W.T, BlockArguments(), settings, again)
        expected = literal_floats(W.double(), X.double(), total.item(), picks)
    ours = layer.quantized().dense()
    assert torch.equal(ours, layer.values().detach())
    (nearest,) = round_to_nearest([W], settings.number, torch.float32)
    assert not torch.equal(ours, nearest.dense())
    assert ((ours - expected).abs() > 1e-4).sum() <= 4


@pytest.mark.parametrize("form", ["fp8", "nvfp4", "mxfp4", "mxfp8"])
def test_one_step_of_a_format_is_rtn(form: str) -> None:
    W = torch.randn(12, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    W[0, :32] = 0
    number = FLOATS[form]
    total = layer_total([W], number)
    layer = autoround.FloatRounding(W.float(), number.width or 64, number, torch.bfloat16, total)
    (nearest,) = round_to_nearest([W], number, torch.bfloat16)
    assert torch.equal(layer.quantized().dense(), nearest.dense())
    # As far as offsets may go, zeros are still zero.
    layer.offset.data.fill_(0.5)
    assert layer.quantized().dense()[0, :32].eq(0).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [4, "channel"])
def test_one_step_is_rtn(tiny: Path, text: Tensor, group_size: Any, symmetric: bool) -> None:
    grid = {"bits": 3, "group_size": group_size, "symmetric": symmetric}
    ours, nearest = altered(tiny, text, iterations=1, **grid), load(tiny)
    rtn.alter(nearest, rtn.Settings(**grid), Context())
    for name in linears_of(load(tiny)):
        assert torch.equal(layer_of(ours, name).dense(), layer_of(nearest, name).dense())


def test_hurts_less_than_rtn_and_depends_on_the_seed_alone(tiny: Path, text: Tensor) -> None:
    base, nearest = load(tiny), load(tiny)
    rtn.alter(nearest, rtn.Settings(bits=3, group_size=4), Context())
    ours = altered(tiny, text, bits=3)
    held_out = text[WINDOWS:]
    assert divergence(base, ours, held_out) < 0.8 * divergence(base, nearest, held_out)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again, other = altered(tiny, text, bits=3), altered(tiny, text, seed=1, bits=3)
    assert torch.equal(torch.get_rng_state(), state)
    name = "model.layers.1.mlp.down_proj"
    assert torch.equal(layer_of(ours, name).dense(), layer_of(again, name).dense())
    assert not torch.equal(layer_of(ours, name).dense(), layer_of(other, name).dense())


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.usefixtures("trained")
def test_a_block_is_as_good_as_the_library_s(tiny: Path, text: Tensor) -> None:
    from auto_round import AutoRound
    from auto_round.schemes import QuantizationScheme

    model = load(tiny)
    block = blocks(model)[2]
    with torch.no_grad():
        states, arguments = embed(model, text[:WINDOWS].split(1))
        for earlier, keywords in zip(blocks(model)[:2], arguments, strict=False):
            states = [earlier(state, **keywords) for state in states]
        target = [block(state, **arguments[2]) for state in states]

    def error(weights: dict[str, Tensor]) -> float:
        with torch.no_grad():
            found = autoround.run(block, weights, torch.cat(states), arguments[2], 6)
        return torch.nn.functional.mse_loss(found, torch.cat(target)).item()

    # The library leaves layers unquantized whose rows or columns are no multiple of 32: the MLP.
    names = [f"self_attn.{part}_proj" for part in "qkvo"]
    settings = autoround.Settings(bits=3, group_size=4, iterations=40, batch=6)
    layers = {name: autoround.Rounding(layer_of(block, name).weight.data, 4, settings, torch.float32) for name in names}
    begin = error({f"{name}.weight": layer.values().detach() for name, layer in layers.items()})
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        autoround.tune(block, layers, torch.cat(states), torch.cat(target), arguments[2], settings, generator)
    ours = error({f"{name}.weight": layer.quantized().dense() for name, layer in layers.items()})

    peer = blocks(load(tiny))[2]
    state = torch.get_rng_state()
    engine = AutoRound(
        model=Wrapped(peer, model.config),
        tokenizer="",
        scheme=QuantizationScheme(bits=3, sym=False, group_size=4, data_type="int", act_bits=16),
        iters=40,
        enable_torch_compile=False,
        batch_size=6,
        nsamples=WINDOWS,
        seqlen=LENGTH,
        device_map="cpu",
        amp=False,
        scale_dtype="fp32",
    )
    try:
        engine.configure_layer_config(enable_gguf_official_mixed=False)
        calls = [(((state,), arguments[2]),) for state in states]
        engine.quantize_block(block=peer, inputs=calls, device="cpu", auto_offload=False)
    finally:
        # The library sets it for the whole process.
        torch.set_rng_state(state)
    theirs = error({f"{name}.weight": layer_of(peer, name).weight for name in names})
    assert ours < 0.6 * begin
    assert ours == pytest.approx(theirs, rel=0.1)


class Wrapped(nn.Module):
    """A block as the library wants to find it in a model."""

    def __init__(self, block: nn.Module, config: Any) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([block])
        self.config, self.dtype, self.name_or_path = config, torch.float32, ""


def test_a_checkpoint_reads_back(tiny: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"bits": 2, "group_size": 4, "iterations": 2, "batch": 2, "samples": 4}
    spec = {"sweep": "s", "method": "autoround", "settings": settings, "seed": 0}
    calibration = calibrated(tiny, tmp_path)
    compress(tmp_path / "out", "v", tiny, None, calibration, [], spec)
    assert "failure" not in read_manifest(tmp_path / "out")
    spec["settings"] = settings | {"samples": 7}
    compress(tmp_path / "few", "v", tiny, None, calibration, [], spec)
    failure = read_manifest(tmp_path / "few")["failure"]
    assert "wants 7 calibration windows; the calibration set has 6" in failure


def test_zeros_stay(tiny: Path, text: Tensor) -> None:
    model = load(tiny)
    for linear in linears_of(model).values():
        linear.weight.data[:, ::3] = 0
    autoround.alter(model, autoround.Settings(bits=3, group_size=4, iterations=4), Context(Windows(text[:8])))
    for name in linears_of(load(tiny)):
        assert (layer_of(model, name).dense()[:, ::3] == 0).all()


def test_a_bfloat16_model_keeps_its_dtype(tiny: Path, text: Tensor) -> None:
    model = load(tiny).bfloat16()
    autoround.alter(model, autoround.Settings(bits=4, group_size=4, iterations=2), Context(Windows(text[:8])))
    assert model.model.layers[0].input_layernorm.weight.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.stored()["weight_scale"].dtype == torch.bfloat16


def test_every_sample_is_drawn_as_often() -> None:
    chosen = autoround.draws(7, 2, torch.Generator().manual_seed(0))
    seen = torch.cat([next(chosen) for _ in range(3)])
    assert len(seen.unique()) == 6
    assert [len(next(chosen)) for _ in range(4)] == [2] * 4


def test_settings() -> None:
    settings = autoround.Settings(bits=3, group_size=64)
    assert settings.statistics == ("tokens",)
    assert settings.label == "3 bit, groups of 64, 200 steps"
    with pytest.raises(ValueError, match="samples 4 must be at least the batch of 8"):
        autoround.Settings(bits=3, samples=4)
    with pytest.raises(ValueError, match="iterations"):
        autoround.Settings(bits=3, iterations=0)
