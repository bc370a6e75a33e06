"""Round to nearest and GPTQ against the engine's own grids and against the definition of GPTQ."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from torch import Tensor

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.weight_quantization import gptq, rtn
from hemorrhage.compress.solvers.columns import Layers, batches, factor
from hemorrhage.compress.solvers.grid import GridSettings, Quantized
from hemorrhage.compress.solvers.packing import pack
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.whole import whole


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("quantize"))


def spec(method: str, **settings: Any) -> dict[str, Any]:
    return {"sweep": "s", "method": method, "settings": settings, "seed": 0}


def layer(rows: int = 12, columns: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(300, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return weight, x.T @ x / len(x)


def loss(weight: Tensor, other: Tensor, moment: Tensor) -> float:
    change = (weight - other).double()
    return torch.trace(change @ moment.double() @ change.T).item()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [4, 16, 48])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rtn_is_bit_for_bit_that_of_compressed_tensors(bits: int, width: int, symmetric: bool) -> None:
    weight, _ = layer()
    weight[0, :width] = weight[0, :width].abs() + 1  # a group without negative weights
    weight[1, :width] = 0
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=width)
    groups = weight.unflatten(1, (-1, width))
    scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), args)
    expected = fake_quantize(weight, scale, zero, args)
    settings = GridSettings(bits=bits, group_size=width, symmetric=symmetric)
    ours = rtn.quantize(weight, width, settings, torch.float32)
    assert torch.equal(ours.dense(), expected)
    assert torch.equal(ours.scale, scale)


def test_rtn_is_within_half_a_step_of_the_weights() -> None:
    weight, _ = layer()
    ours = rtn.quantize(weight, 16, GridSettings(bits=5, group_size=16), torch.float32)
    step = ours.scale.repeat_interleave(16, 1)
    # The zero point is rounded too, so the ends of the range may lie half a step outside.
    assert ((weight - ours.dense()).abs() <= step * (1 + 1e-5)).all()
    assert ((weight - ours.dense()).abs() <= step * (0.5 + 1e-5)).float().mean() > 0.97


def test_scales_are_those_that_a_bfloat16_checkpoint_can_hold() -> None:
    weight, moment = layer()
    settings = gptq.Settings(bits=4, group_size=16)
    for ours in (
        rtn.quantize(weight, 16, settings, torch.bfloat16),
        *gptq.quantize([weight], moment, 16, settings, torch.bfloat16),
    ):
        assert ours.scale.dtype == torch.bfloat16
        assert ours.zero is not None
        half = 2 ** (settings.bits - 1)
        scaled = weight.unflatten(1, (-1, 16)) / ours.scale.float().unsqueeze(2)
        nearest = (scaled + ours.zero.unsqueeze(2)).round().clamp(-half, half - 1).flatten(1)
        first = torch.arange(0, 48, 48)  # the first column is rounded before any update, in both methods
        assert torch.equal(nearest[:, first], ours.codes[:, first].float())


def literal_gptq(weight: Tensor, moment: Tensor, width: int, settings: gptq.Settings) -> Tensor:
    """Optimal brain quantization in a fixed order: explicit inverses of what is left of H, float64."""
    W = weight.double().clone()
    H = moment.double() + settings.damp * moment.double().diagonal().mean() * torch.eye(len(moment))
    columns = W.shape[1]
    if settings.act_order:
        order = moment.diagonal().argsort(descending=True, stable=True).tolist()
    else:
        order = list(range(columns))
    scales: dict[int, tuple[Tensor, Tensor]] = {}
    low, high = -(2 ** (settings.bits - 1)), 2 ** (settings.bits - 1) - 1

    def fit(group: int) -> None:
        part = W[:, group * width : (group + 1) * width].float()
        if settings.keep_zeros:
            part = part * (weight[:, group * width : (group + 1) * width] != 0)
        args = QuantizationArgs(num_bits=settings.bits, symmetric=settings.symmetric)
        scale, zero = calculate_qparams(part.amin(1), part.amax(1), args)
        scales[group] = (scale.double(), zero.double())

    if settings.act_order:
        for group in range(columns // width):
            fit(group)
    result = torch.empty_like(W)
    for place, j in enumerate(order):
        if j // width not in scales:
            fit(j // width)
        scale, zero = scales[j // width]
        q = scale * ((W[:, j] / scale + zero).round().clamp(low, high) - zero)
        if settings.keep_zeros:
            q = q * (weight[:, j] != 0)
        left = order[place:]
        inverse = torch.linalg.inv(H[left][:, left])
        W[:, left] -= ((W[:, j] - q) / inverse[0, 0])[:, None] * inverse[0][None]
        result[:, j] = q
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 3, "group_size": "channel"},
        {"bits": 4, "group_size": 16},
        {"bits": 2, "group_size": 8, "symmetric": True},
        {"bits": 8, "group_size": 3},
        {"bits": 3, "group_size": 24},
        {"bits": 3, "group_size": 16, "act_order": True},
        {"bits": 3, "group_size": "channel", "act_order": True},
        {"bits": 3, "group_size": 16, "keep_zeros": True},
        {"bits": 2, "group_size": 16, "keep_zeros": True, "act_order": True},
    ],
)
def test_gptq_is_its_definition(settings: dict[str, Any]) -> None:
    weight, moment = layer()
    if settings.get("keep_zeros"):
        weight[weight.abs() < 0.6] = 0
    chosen = gptq.Settings(**settings)
    width = 48 if chosen.group_size == "channel" else chosen.group_size
    assert isinstance(width, int)
    (ours,) = gptq.quantize([weight], moment, width, chosen, torch.float32)
    expected = literal_gptq(weight, moment, width, chosen)
    same = (ours.dense() - expected).abs().amax(1) < 1e-4
    # The end of a symmetric grid lies half a step off a code, where float error decides the rounding.
    assert same.sum() >= (len(same) - 1 if chosen.symmetric else len(same))
    assert loss(weight, ours.dense(), moment) == pytest.approx(loss(weight, expected, moment), rel=0.1)


def test_gptq_of_layers_that_share_an_input_is_that_of_each_alone() -> None:
    weight, moment = layer(rows=20)
    settings = gptq.Settings(bits=3, group_size=16)
    together = gptq.quantize([weight[:5], weight[5:]], moment, 16, settings, torch.float32)
    for part, rows in zip(together, (weight[:5], weight[5:]), strict=True):
        (alone,) = gptq.quantize([rows], moment, 16, settings, torch.float32)
        assert torch.equal(part.codes, alone.codes)
        torch.testing.assert_close(part.scale, alone.scale)


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_of_inputs_that_are_swept_together_is_that_of_each_alone(act_order: bool) -> None:
    settings = gptq.Settings(bits=3, group_size=16, act_order=act_order, keep_zeros=True)
    problems = [layer(seed=seed) for seed in range(3)]
    batch = [
        Layers.of(["a", "b"], [weight[:5].bfloat16(), weight[5:].bfloat16()], moment, settings.damp, act_order)
        for weight, moment in problems
    ]
    (swept,) = batches(batch, alone=False)
    together = gptq._quantize(swept, 16, settings, torch.bfloat16)
    for (weight, moment), parts in zip(problems, together, strict=True):
        (alone,) = gptq.quantize([weight.bfloat16()], moment, 16, settings, torch.bfloat16)
        assert torch.equal(torch.cat([part.codes for part in parts]), alone.codes)
        assert torch.equal(torch.cat([part.scale for part in parts]), alone.scale)


def test_layers_wait_for_others_of_their_shape_while_they_are_few() -> None:
    def layers(name: str, rows: int) -> Layers:
        return Layers.of([name], [torch.zeros(rows, 4)], torch.eye(4), 0.01)

    arriving = [layers(f"{kind}{i}", rows) for i in range(3) for kind, rows in (("a", 5000), ("b", 4), ("c", 9000))]
    found = [[each.names[0] for each in batch] for batch in batches(arriving, alone=False)]
    assert found == [["c0"], ["a0", "a1"], ["c1"], ["c2"], ["b0", "b1", "b2"], ["a2"]]
    assert [len(batch) for batch in batches(arriving, alone=True)] == [1] * 9


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("width", [16, 48])
def test_gptq_loses_less_than_rtn(bits: int, width: int) -> None:
    weight, moment = layer(rows=64)
    settings = gptq.Settings(bits=bits, group_size=width)
    nearest = rtn.quantize(weight, width, settings, torch.float32).dense()
    (ours,) = gptq.quantize([weight], moment, width, settings, torch.float32)
    assert loss(weight, ours.dense(), moment) < 0.9 * loss(weight, nearest, moment)


def test_gptq_of_uncorrelated_inputs_is_rtn() -> None:
    weight, _ = layer()
    settings = gptq.Settings(bits=3, group_size=16)
    (ours,) = gptq.quantize([weight], torch.eye(48), 16, settings, torch.float32)
    assert torch.equal(ours.codes, rtn.quantize(weight, 16, settings, torch.float32).codes)


def test_gptq_drops_the_weights_of_an_input_that_is_always_zero() -> None:
    weight, moment = layer()
    moment[5] = moment[:, 5] = 0
    (ours,) = gptq.quantize([weight], moment, 48, gptq.Settings(bits=4, group_size="channel"), torch.float32)
    assert (ours.dense()[:, 5] == 0).all()
    assert ours.dense().isfinite().all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", ["rtn", "gptq", "gptq, act order"])
def test_zeros_of_a_pruned_layer_stay(method: str, symmetric: bool) -> None:
    weight, moment = layer()
    weight[weight.abs() < 0.7] = 0
    settings = gptq.Settings(bits=3, group_size=16, symmetric=symmetric, keep_zeros=True, act_order="order" in method)
    if method == "rtn":
        ours = rtn.quantize(weight, 16, settings, torch.float32)
    else:
        (ours,) = gptq.quantize([weight], moment, 16, settings, torch.float32)
        (filled,) = gptq.quantize(
            [weight], moment, 16, settings.model_copy(update={"keep_zeros": False}), torch.float32
        )
        assert (filled.dense()[weight == 0] != 0).any()
    assert (ours.dense()[weight == 0] == 0).all()
    # What is left makes up for what is rounded, and only rounding is left to make up for.
    plain = rtn.quantize(weight, 16, settings, torch.float32).dense()
    assert loss(weight, ours.dense(), moment) <= loss(weight, plain, moment)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", [rtn, gptq])
def test_sixteen_bits_change_nothing(tiny: Path, calibration: Path, method: Any, symmetric: bool) -> None:
    settings = gptq.Settings.model_construct(bits=16, group_size=4, symmetric=symmetric)
    model, statistics = load(tiny), Statistics(calibration)
    tokens = torch.randint(500, (2, 32), generator=torch.Generator().manual_seed(0))
    linears = linears_of(model)
    with torch.no_grad():
        before = model(tokens).logits
        for first, names in statistics.shared().items():
            weights = [linears[name].weight for name in names]
            if method is rtn:
                parts = [rtn.quantize(weight, 4, settings, torch.float32) for weight in weights]
            else:
                parts = gptq.quantize(weights, statistics.second_moment(first), 4, settings, torch.float32)
            for weight, part in zip(weights, parts, strict=True):
                weight.copy_(part.dense())
        after = model(tokens).logits
    assert (after - before).abs().max() < 2e-4 * before.abs().max()
    assert not torch.equal(after, before)


def test_errors_are_propagated_where_wanted(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    codes = {}
    for sequential in (False, True):
        out = tmp_path / str(sequential)
        compress(out, "v", tiny, None, calibration, [], spec("gptq", bits=3, group_size=4, sequential=sequential))
        assert read_manifest(out)["curve"] == f"groups of 4{', sequential' if sequential else ''}"
        codes[sequential] = dict(Weights(out, tiny).items())
    first, last = (f"model.layers.{i}.self_attn.q_proj.weight_packed" for i in (0, 4))
    # Nothing is before the first block.
    assert torch.equal(codes[False][first], codes[True][first])
    assert not torch.equal(codes[False][last], codes[True][last])


def test_factor_is_that_of_the_damped_moment() -> None:
    _, moment = layer()
    damped = moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(48)
    reach, diagonal = (part.double() for part in factor(moment, 0.01))
    assert torch.equal(reach, reach.tril())
    assert (reach.diagonal() == 1).all()
    R = (reach * diagonal[:, None]).T
    torch.testing.assert_close(R @ R.T, damped, rtol=1e-4, atol=1e-5)
    U = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(1 / diagonal, U.diagonal(), rtol=1e-4, atol=0)


def test_a_packed_3_bit_checkpoint_reads_back_in_a_fresh_process(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    compress(out, "v", tiny, None, calibration, [], spec("gptq", bits=3, group_size="channel"))
    assert "failure" not in read_manifest(out)
    script = (
        "import sys; from pathlib import Path; from hemorrhage.models.checkpoint import load;"
        "from hemorrhage.models.reload import verify; p = Path(sys.argv[1]);"
        "verify(load(p, base=Path(sys.argv[2])), p);"
        "from transformers import AutoModelForCausalLM as A; import torch;"
        "verify(A.from_pretrained(sys.argv[3], dtype=torch.float32).eval(), p)"
    )
    done = subprocess.run([sys.executable, "-c", script, out, tiny, whole(out, tiny)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_is_packed_as_named_and_reads_back(tiny: Path, tmp_path: Path, bits: int) -> None:
    out = tmp_path / "checkpoint"
    compress(out, "v", tiny, None, None, [], spec("rtn", bits=bits, group_size=4, symmetric=bits % 2 == 0))
    verify(load(out, base=tiny), out)
    tensors = dict(Weights(out, tiny).items())
    down = tensors["model.layers.0.mlp.down_proj.weight_packed"]
    assert down.shape == (64, math.ceil(172 * bits / 32))
    assert not any(name.endswith("proj.weight") for name in tensors)
    assert ("model.layers.0.mlp.down_proj.weight_zero_point" in tensors) == (bits % 2 == 1)


def test_size_counts_everything(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    compress(out, "v", tiny, None, None, [], spec("rtn", bits=3, group_size=4))
    manifest = read_manifest(out)
    stored = sum(8 * t.numel() * t.element_size() for t in dict(Weights(out, tiny).items()).values())
    base = load_file(tiny / "model.safetensors")
    parameters = sum(t.numel() for t in base.values())
    assert manifest["parameters"] == parameters
    assert manifest["effective_bits"] == pytest.approx(stored / parameters)
    expected = stored / sum(8 * t.numel() * t.element_size() for t in base.values())
    assert manifest["size_ratio"] == pytest.approx(expected)
    assert manifest["disk_bytes"] == pytest.approx((whole(out, tiny) / "model.safetensors").stat().st_size, rel=0.01)
    # Codes, float32 scales and 3-bit zero points for groups of 4.
    linear = sum(module.weight.numel() for module in linears_of(load(tiny)).values())
    assert stored >= linear * (3 + 32 / 4 + 3 / 4) + 32 * (parameters - linear)


def test_eight_bits_hurt_less_than_two(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    tokens = torch.randint(500, (2, 32), generator=torch.Generator().manual_seed(0))
    base = load(tiny)
    divergence = {}
    with torch.no_grad():
        reference = base(tokens).logits.log_softmax(-1)
        for method in ("rtn", "gptq"):
            for bits in (2, 8):
                out = tmp_path / f"{method}{bits}"
                compress(out, "v", tiny, None, calibration, [], spec(method, bits=bits, group_size=4))
                other = load(out, base=tiny)(tokens).logits.log_softmax(-1)
                divergence[method, bits] = (reference.exp() * (reference - other)).sum(-1).mean().item()
    for method in ("rtn", "gptq"):
        assert -1e-6 < divergence[method, 8] < 1e-3
        assert divergence[method, 2] > 20 * divergence[method, 8]


def test_a_damaged_checkpoint_is_noticed(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    compress(out, "v", tiny, None, None, [], spec("rtn", bits=4, group_size=4))
    model = load(out, base=tiny)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3] *= 1.5
    with pytest.raises(ValueError, match="reload differs by"):
        verify(model, out)
    with pytest.raises(ValueError, match="float32"):
        verify(model.bfloat16(), out)


def test_constant_words_are_refused() -> None:
    empty = Quantized(torch.zeros(4, 32, dtype=torch.int8), torch.ones(4, 1), None)
    with pytest.raises(ValueError, match="all packed words are the same"):
        pack("layer", empty, 4)


def test_a_group_that_divides_no_width_is_refused_before_and_recorded_after(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    settings = rtn.Settings(bits=4, group_size=64)
    assert settings.check(config) == "group_size 64 does not divide the model's intermediate_size of 172"
    assert rtn.Settings(bits=4, group_size=4).check(config) is None
    assert rtn.Settings(bits=4, group_size="channel").check(config) is None
    compress(tmp_path / "out", "v", tiny, None, None, [], spec("rtn", bits=4, group_size=64))
    manifest = read_manifest(tmp_path / "out")
    assert "group_size 64 does not divide the model's intermediate_size of 172" in manifest["failure"]
    assert manifest["variant"] == "v"


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"bits": 9}, {"bits": 4, "group_size": 0}, {"bits": 4, "damp": 2}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        gptq.Settings.model_validate(wrong)


def test_labels() -> None:
    settings = gptq.Settings(bits=4, group_size=64)
    assert settings.label == "4 bit, groups of 64"
    assert settings.curve == "groups of 64"
    assert settings.severity == 4.0
    assert settings.statistics == ("hessian",)
    longer = gptq.Settings(bits=4, group_size=64, act_order=True, sequential=True, keep_zeros=True)
    assert longer.curve == "groups of 64, zeros kept, act order, sequential"
    assert rtn.Settings(bits=4, group_size="channel", symmetric=True).label == "4 bit, per channel, symmetric"
    assert rtn.Settings(bits=4).statistics == ()


def test_a_method_that_needs_statistics_says_so(tiny: Path, tmp_path: Path) -> None:
    compress(tmp_path / "out", "v", tiny, None, None, [], spec("gptq", bits=4, group_size=4))
    assert "needs --calibration" in read_manifest(tmp_path / "out")["failure"]
