"""Every arm of the mitigations on a trained model: it recovers on text it has not seen, and its control does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hemorrhage.analyze.rows import mitigations
from hemorrhage.analyze.rows.schema import Source
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.calibrate.gradients import gradients
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.calibrate.statistics import collect
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.activation_quantization import activations
from hemorrhage.compress.methods.recovery import recovery
from hemorrhage.compress.methods.structured_pruning import width
from hemorrhage.compress.methods.unstructured_pruning import gblm, wanda, wanda_plus
from hemorrhage.compress.methods.weight_quantization import awq, mixed, qat, rtn
from hemorrhage.compress.solvers.checkpoint_size import layer_bits
from hemorrhage.compress.solvers.training import batches
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.conftest import STORIES
from tests.layers import generate

SAMPLES, HELD_OUT, LENGTH = 32, 64, 64


@pytest.fixture(scope="module")
def texts(trained: Path) -> Tensor:
    """What the model itself says: int64 [SAMPLES + HELD_OUT, LENGTH]."""
    model = load(trained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = torch.full((SAMPLES + HELD_OUT, 1), model.config.bos_token_id)
        options = {"do_sample": True, "top_k": 0, "min_new_tokens": LENGTH - 1, "pad_token_id": 0}
        return generate(model, start, max_new_tokens=LENGTH - 1, **options)


@pytest.fixture(scope="module")
def statistics(trained: Path, texts: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    folder = tmp_path_factory.mktemp("arms")
    save_file({"tokens": texts[:SAMPLES].int()}, folder / "tokens.safetensors")
    collected = collect(load(trained), texts[:SAMPLES], folder)
    (folder / "manifest.json").write_text(json.dumps({"corpora": {"made": "ab"}, **collected}))
    for part in ("loss", "local"):
        gradients(folder / part, trained, folder, {"part": part})
    return Statistics(folder, {part: folder / part for part in ("loss", "local")})


Made = Callable[..., Any]


@pytest.fixture(scope="module")
def made(trained: Path, statistics: Statistics) -> Made:
    """A function that makes an altered model; ``prepare`` alters it before."""

    def make(method: Any, prepare: Callable[[Any], None] | None = None, seed: int = 0, **settings: Any) -> Any:
        model = load(trained)
        if prepare:
            prepare(model)
        if method is not None:
            method.alter(model, method.Settings(**settings), Context(statistics, seed))
        return model

    return make


@pytest.fixture(scope="module")
def compare(trained: Path, texts: Tensor) -> Callable[..., mitigations.Measured]:
    """KL from the base of plain, treated and control models, on windows that nothing was fitted to."""
    held_out = texts[SAMPLES:]
    with torch.no_grad():
        base = load(trained)(held_out).logits.log_softmax(-1)
    sizes = np.full(HELD_OUT, LENGTH)
    counts = bootstrap.draws("held out", HELD_OUT, 1000, 0)

    def comparison(*models: Any) -> mitigations.Measured:
        sums = []
        for model in models:
            with torch.no_grad():
                other = model(held_out).logits.log_softmax(-1)
            sums.append((base.exp() * (base - other)).sum((1, 2)).double().numpy())
        return mitigations.compare_sums("kl_mean", Source(), sums, sizes, counts)

    return comparison


def outliers(model: Any) -> None:
    """Plant features that are large in a norm's output and small in the weights that read it: the same function."""
    with torch.no_grad():
        stack: Any = blocks(model)
        for block in stack:
            for norm, layers in (
                (block.input_layernorm, [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]),
                (block.post_attention_layernorm, [block.mlp.gate_proj, block.mlp.up_proj]),
            ):
                norm.weight[::16] *= 32
                for layer in layers:
                    layer.weight[:, ::16] /= 32


FAST = {"steps": 16, "learning_rate": 3e-3, "batch": 8}
"""The tiny model needs larger steps than the default's."""


ANY = 1e-9
"""A smallest effect that every recovery passes: here it is asked whether there is one, not whether it matters."""


def check(measured: mitigations.Measured) -> None:
    """The arm recovers and its control does not; where that is neutral, the difference is no accident."""
    own = mitigations.recovery(measured.plain, measured.treated, 0.95)
    assert measured.control is not None
    control = mitigations.recovery(measured.plain, measured.control, 0.95)
    gap = mitigations.beyond_control(measured, 0.95)
    assert own is not None
    assert control is not None
    assert own.low > 0, own
    if gap is None:
        # Shuffled information does more damage than none.
        assert control.high < 0, control
        assert mitigations.verdict(measured, 0.95, ANY) == "recovers, not compared with its control"
        return
    assert control.low <= 0, control
    assert gap is not None
    assert gap.low > 0, gap
    assert mitigations.verdict(measured, 0.95, ANY) == "recovers"


W8 = {"bits": 8, "activations": "token"}
ARMS: dict[str, tuple[Any, dict[str, Any], Any, dict[str, Any], Any]] = {
    "gblm": (wanda, {"sparsity": 0.6}, gblm, {"sparsity": 0.6}, None),
    "wanda_plus": (wanda, {"sparsity": 0.7}, wanda_plus, {"sparsity": 0.7}, None),
    "taylor1": (
        width,
        {"removed": 0.2, "importance": "magnitude", "protect_first": 1, "protect_last": 0},
        width,
        {"removed": 0.2, "importance": "taylor1", "protect_first": 1, "protect_last": 0},
        None,
    ),
    "taylor2": (
        width,
        {"removed": 0.2, "importance": "magnitude", "protect_first": 1, "protect_last": 0},
        width,
        {"removed": 0.2, "importance": "taylor2", "protect_first": 1, "protect_last": 0},
        None,
    ),
    "awq_scale": (
        rtn,
        {"bits": 3, "group_size": "channel"},
        awq,
        {"bits": 3, "group_size": "channel", "clip": False},
        None,
    ),
    "awq": (rtn, {"bits": 3, "group_size": 4}, awq, {"bits": 3, "group_size": 4}, None),
    "smooth": (activations, W8, activations, {**W8, "smooth": 0.5}, outliers),
    "qat_2": (rtn, {"bits": 2, "group_size": "channel"}, qat, {"bits": 2, "group_size": "channel", **FAST}, None),
    "qat_3": (rtn, {"bits": 3, "group_size": "channel"}, qat, {"bits": 3, "group_size": "channel", **FAST}, None),
}


if STORIES.is_dir():
    # Where channels are alike, as in the model that the tests carry, one lot is better than another by accident.
    ARMS["taylor2_random"] = (
        width,
        {"removed": 0.2, "importance": "random", "protect_first": 1, "protect_last": 0},
        *ARMS["taylor2"][2:],
    )


@pytest.mark.parametrize("arm", ARMS)
def test_the_arm_recovers_and_its_control_does_not(made: Made, compare: Any, arm: str) -> None:
    plain, before, method, settings, prepare = ARMS[arm]
    control = made(method, prepare, **settings, shuffled=True)
    check(compare(made(plain, prepare, **before), made(method, prepare, **settings), control))


def test_bits_by_sensitivity_are_not_compared_with_a_control_that_does_harm(
    trained: Path, made: Made, compare: Any
) -> None:
    """Groups that engines fuse are a fifth of so small a model each: at exactly these bytes uniform bits are hard to
    beat, and sensitivities in wrong places do much harm."""
    uniform: dict[str, Any] = {"bits": 4, "group_size": "channel"}
    linears = linears_of(load(trained)).values()
    stored = sum(layer_bits(linear, rtn.Settings(**uniform)) for linear in linears)
    settings: dict[str, Any] = {
        "budget": stored / sum(linear.weight.numel() for linear in linears) + 1e-9,
        "group_size": "channel",
    }
    measured = compare(made(rtn, **uniform), made(mixed, **settings), made(mixed, **settings, shuffled=True))
    own = mitigations.recovery(measured.plain, measured.treated, 0.95)
    control = mitigations.recovery(measured.plain, measured.control, 0.95)
    gap = mitigations.beyond_control(measured, 0.95)
    assert own is not None
    assert own.high > 0, own
    assert control is not None
    assert control.high < 0, control
    assert gap is None
    assert "is not neutral" in mitigations.not_neutral(measured, 0.95)


def test_lora_recovers_a_narrow_model_and_on_shuffled_tokens_does_not(made: Made, compare: Any) -> None:
    def narrow(model: Any) -> None:
        width.alter(model, width.Settings(removed=0.5, importance="random", protect_first=1, protect_last=0), Context())

    settings: dict[str, Any] = {"steps": 25, "learning_rate": 2e-3, "batch": 8}
    plain = made(None, narrow)
    check(compare(plain, made(recovery, narrow, **settings), made(recovery, narrow, **settings, shuffled=True)))


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_trains_is_what_is_stored(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 36, generator=generator).requires_grad_()
    settings = qat.Settings(bits=3, group_size=12, symmetric=symmetric)
    for dtype in (torch.float32, torch.bfloat16):
        values = qat.straight_through(weight, 12, settings, dtype)
        torch.testing.assert_close(values, rtn.quantize(weight.detach(), 12, settings, dtype).dense())
    upstream = torch.randn(24, 36, generator=generator)
    assert torch.equal(torch.autograd.grad(values, weight, upstream)[0], upstream)


def literal_qat(base: Path, windows: list[Tensor], bits: int, top_rate: float) -> dict[str, Tensor]:
    """Float32 weights after AdamW steps on KL(teacher || student), rounding and everything else written out."""
    teacher, student = load(base), load(base)
    weights = {name: linear.weight.detach().clone() for name, linear in linears_of(student).items()}
    means = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    steps = len(windows)
    for step, batch in enumerate(windows):
        inner = linears_of(student)
        for name, weight in weights.items():
            low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
            scale = (high - low) / (2**bits - 1)
            zero = torch.round(-low / scale)
            inner[name].weight.data = scale * (torch.round(weight / scale + zero).clamp(0, 2**bits - 1) - zero)
        with torch.no_grad():
            p = teacher(batch).logits.softmax(-1)
        loss = (p * (p.log() - student(batch).logits.log_softmax(-1))).sum(-1).mean()
        gradients = torch.autograd.grad(loss, [inner[name].weight for name in weights])
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        warm = -(-steps // 10)
        share = (step + 1) / warm if step < warm else (1 + np.cos(np.pi * (step - warm) / (steps - warm))) / 2
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            gradient = gradient * min(1.0, 1 / (norm.item() + 1e-6))
            means[name] = 0.9 * means[name] + 0.1 * gradient
            squares[name] = 0.999 * squares[name] + 0.001 * gradient**2
            mean, square = means[name] / (1 - 0.9 ** (step + 1)), squares[name] / (1 - 0.999 ** (step + 1))
            weights[name] = weight - top_rate * share * mean / (square.sqrt() + 1e-8)
    return weights


def test_qat_is_adamw_through_the_rounding(tiny: Path) -> None:
    class Single(Statistics):
        """As many windows as steps, so that each is drawn once."""

        def __init__(self) -> None:
            self.drawn = torch.randint(3, 500, (5, 24), generator=torch.Generator().manual_seed(0))

        def tokens(self) -> Tensor:
            return self.drawn

    statistics, settings = Single(), qat.Settings(bits=3, group_size="channel", steps=5, batch=1, learning_rate=1e-3)
    order = batches(statistics.tokens(), 1, 7)
    expected = literal_qat(tiny, [next(order) for _ in range(5)], 3, 1e-3)
    model = load(tiny)
    weights = {name: linear.weight.detach().clone() for name, linear in linears_of(model).items()}
    before = {name: weight.clone() for name, weight in weights.items()}
    widths = {name: weight.shape[1] for name, weight in weights.items()}
    model.requires_grad_(False)
    qat.train(model, weights, widths, dict.fromkeys(weights, torch.float32), settings, Context(statistics, 7))
    for name, weight in weights.items():
        moved, wanted = weight.detach() - before[name], expected[name] - before[name]
        # Adam turns the sign of a tiny gradient, which rounding decides, into a whole step.
        assert (moved - wanted).abs().mean() < 0.02 * wanted.abs().mean()


def test_a_whole_qat_job_keeps_zeros_and_reads_back(tiny: Path, tmp_path: Path) -> None:
    calibration = calibrated(tiny, tmp_path)
    pruned = {"sweep": "s", "method": "magnitude", "seed": 0, "settings": {"sparsity": 0.5}}
    compress(tmp_path / "pruned", "p", tiny, None, None, [], pruned)
    settings: dict[str, Any] = {
        "bits": 3,
        "group_size": "channel",
        "steps": 3,
        "keep_zeros": True,
        "learning_rate": 1e-3,
    }
    spec = {"sweep": "q", "method": "qat", "seed": 0, "on": "p", "settings": settings}
    compress(tmp_path / "out", "v", tiny, tmp_path / "pruned", calibration, [], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest
    model, before = load(tmp_path / "out", base=tiny), linears_of(load(tmp_path / "pruned", base=tiny))
    for name, linear in linears_of(model).items():
        assert (linear.weight[before[name].weight == 0] == 0).all()


def test_a_control_needs_something_to_shuffle() -> None:
    for method, wrong in (
        (width, {"removed": 0.2, "importance": "magnitude"}),
        (activations, {"bits": 8}),
        (awq, {"bits": 3, "scale": False, "clip": False}),
    ):
        with pytest.raises(ValueError, match="what is shuffled"):
            method.Settings(**wrong, shuffled=True)
    for method, settings in ((gblm, {"sparsity": 0.5}), (qat, {"bits": 3}), (mixed, {"budget": 3.5})):
        control = method.Settings(**settings, shuffled=True)
        assert control.curve.endswith("shuffled")
        assert control.curve != method.Settings(**settings).curve
