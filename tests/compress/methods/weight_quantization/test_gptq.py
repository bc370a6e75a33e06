"""Round to nearest and GPTQ against the engine's own grids and against the definition of GPTQ."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.weight_quantization import gptq, rtn
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.compress.made import layer, spec
from tests.whole import whole


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("quantize"))


def loss(weight: Tensor, other: Tensor, moment: Tensor) -> float:
    change = (weight - other).double()
    return torch.trace(change @ moment.double() @ change.T).item()


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


def test_a_method_that_needs_statistics_says_so(tiny: Path, tmp_path: Path) -> None:
    compress(tmp_path / "out", "v", tiny, None, None, [], spec("gptq", bits=4, group_size=4))
    assert "needs --calibration" in read_manifest(tmp_path / "out")["failure"]
