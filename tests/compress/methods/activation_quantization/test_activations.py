"""Quantized activations against their definition, compressed-tensors, and transformers' own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from torch import Tensor
from transformers import AutoModelForCausalLM

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.activation_quantization import activations
from hemorrhage.models.checkpoint import load
from hemorrhage.models.emulation.activations import InputRounding, exact, quantization_args, rounding_of, scale_of
from hemorrhage.models.formats import int8
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.divergence import kl
from tests.layers import block_of, layer_of, logits_of
from tests.whole import whole

OUTLIER = 100.0


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("activations"))


@pytest.fixture(scope="module")
def outliers(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same function with one feature of every norm's output 100 times as large, and its calibration."""
    folder = tmp_path_factory.mktemp("outliers")
    model = load(tiny)
    with torch.no_grad():
        for index in range(5):
            block = block_of(model, index)
            readers = {
                block.input_layernorm: [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj],
                block.post_attention_layernorm: [block.mlp.gate_proj, block.mlp.up_proj],
            }
            for norm, layers in readers.items():
                norm.weight[7] *= OUTLIER
                for layer in layers:
                    layer.weight[:, 7] /= OUTLIER
    model.save_pretrained(folder / "model")
    for file in tiny.glob("*token*"):
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    return folder / "model", calibrated(folder / "model", folder / "calibration")


def spec(**settings: Any) -> dict[str, Any]:
    return {"sweep": "s", "method": "activations", "settings": settings, "seed": 0}


def made(base: Path, calibration: Path, out: Path, **settings: Any) -> Path:
    compress(out, "v", base, None, calibration, [], spec(**settings))
    assert "failure" not in read_manifest(out), read_manifest(out)["failure"]
    return out


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return logits_of(model, tokens)


def divergence(base: Path, calibration: Path, tokens: Tensor, **settings: Any) -> float:
    """Mean KL(base || altered) in nats."""
    model = load(base)
    before = logits(model, tokens)
    activations.alter(model, activations.Settings.model_validate(settings), Context(Statistics(calibration)))
    return kl(before, logits(model, tokens))


def literal(x: list[float], largest: float, bits: int) -> list[float]:
    """One scale's values, number by number."""
    scale = 2 * largest / (2**bits - 1)
    if scale == 0:
        return x
    codes = [min(max(round(value / scale), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1) for value in x]
    return [code * scale for code in codes]


def inputs() -> Tensor:
    x = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 4)[:, None]
    # A negative end of a symmetric grid lies half a step off a code, where float error decides the rounding.
    x[..., 0] = 1.1 * x.abs().amax(-1)
    x[0, 1] = 0
    return x


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("over", ["static", "tensor", "token"])
def test_rounding_is_its_definition(bits: int, over: str) -> None:
    x = inputs()
    if over == "static":
        ours = InputRounding(bits, over, 2.0 * 1.5 / (2**bits - 1)).round(x)
        expected = [[literal(row, 1.5, bits) for row in rows] for rows in x.tolist()]
    elif over == "tensor":
        ours = InputRounding(bits, over).round(x)
        expected = [[literal(row, x.abs().max().item(), bits) for row in rows] for rows in x.tolist()]
    else:
        ours = InputRounding(bits, over).round(x)
        expected = [[literal(row, max(map(abs, row)), bits) for row in rows] for rows in x.tolist()]
    torch.testing.assert_close(ours, torch.tensor(expected))


@pytest.mark.parametrize("bits", range(4, 9))
@pytest.mark.parametrize("over", ["static", "tensor", "token"])
def test_rounding_is_bit_for_bit_that_of_compressed_tensors(bits: int, over: str) -> None:
    x = inputs()
    fixed = scale_of(torch.tensor(1.5), bits).item() if over == "static" else None
    rounding = InputRounding(bits, over, fixed)
    args = QuantizationArgs(**quantization_args(rounding))
    if fixed is None:
        scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Identity())
    else:
        scale, zero = torch.tensor([fixed]), torch.zeros(1)
    assert torch.equal(rounding.round(x), fake_quantize(x, scale, zero, args))


def test_a_token_does_not_depend_on_its_batch_and_a_tensor_does() -> None:
    x = inputs()
    x[1] *= 2
    for over, alone in (("token", True), ("tensor", False)):
        rounding = InputRounding(8, over)
        assert torch.equal(rounding.round(x)[:1], rounding.round(x[:1])) == alone


def test_half_precision_is_rounded_in_float32() -> None:
    x = inputs().bfloat16()
    ours = InputRounding(8, "token").round(x)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, InputRounding(8, "token").round(x.float()).bfloat16())


def test_what_is_written_is_what_is_read() -> None:
    for rounding in (
        InputRounding(8, "token"),
        InputRounding(6, "tensor"),
        InputRounding(8, "static", 0.25),
    ):
        stored = {} if rounding.scale is None else {"input_scale": torch.tensor([rounding.scale])}
        assert rounding_of("layer", quantization_args(rounding), stored) == rounding
    wrongs: list[Any] = [{"symmetric": None}, {"strategy": "group"}, {"type": "fraction"}, {"dynamic": False}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="layer: inputs quantized as"):
            rounding_of("layer", {**quantization_args(InputRounding(8, "token")), **wrong}, {})
    with pytest.raises(ValueError, match="layer: inputs"):
        rounding_of("layer", quantization_args(InputRounding(8, "static", 1.0)), {})


@pytest.mark.parametrize(
    "settings",
    [
        {"activations": "static", "smooth": 0.5},
        {"activations": "tensor"},
        {"activations": "token"},
        {"activations": "token", "activation_bits": 5, "group_size": 4},
        {"bits": 4, "group_size": 4},
        {"bits": 4, "group_size": 4, "activations": "static"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_transformers_reads_the_same_model(
    tiny: Path, calibration: Path, text: Tensor, tmp_path: Path, settings: dict[str, Any]
) -> None:
    out = made(tiny, calibration, tmp_path / "out", **settings)
    ours = logits(load(out, base=tiny), text)
    theirs = logits(AutoModelForCausalLM.from_pretrained(whole(out, tiny), dtype=torch.float32).eval(), text)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * ours.abs().max().item())
    torch.testing.assert_close(
        ours, logits(load(out, as_stored=True, base=tiny), text), rtol=0, atol=1e-5 * ours.abs().max().item()
    )
    tensors = dict(Weights(out, tiny).items())
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    layer = "model.layers.0.mlp.down_proj"
    if settings.get("bits") == 4:
        assert group["format"] == "pack-quantized"
        assert f"{layer}.weight" not in tensors
    else:
        assert group["format"] == "int-quantized"
        assert tensors[f"{layer}.weight"].dtype == torch.int8
    assert (f"{layer}.input_scale" in tensors) == (settings.get("activations") == "static")
    assert config["ignore"] == ["lm_head"]


def test_a_bfloat16_model_is_quantized_from_its_smoothed_weights(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    model = load(tiny).bfloat16()
    model.save_pretrained(tmp_path / "base")
    out = made(tmp_path / "base", calibration, tmp_path / "out", activations="static", smooth=0.5)
    tensors = dict(Weights(out, tmp_path / "base").items())
    layer = "model.layers.1.mlp.gate_proj"
    assert tensors[f"{layer}.weight_scale"].dtype == tensors[f"{layer}.input_scale"].dtype == torch.bfloat16
    norm = "model.layers.1.post_attention_layernorm.weight"
    factor = model.state_dict()[norm].float() / tensors[norm].float()
    smoothed = layer_of(model, layer).weight.float() * factor
    dense = tensors[f"{layer}.weight"].float() * tensors[f"{layer}.weight_scale"].float()
    step = tensors[f"{layer}.weight_scale"].float()
    # The end of a symmetric grid lies half a step off its last code.
    assert ((dense - smoothed).abs() <= step * 1.01).all()
    assert ((dense - smoothed).abs() <= step * 0.51).float().mean() > 0.98
    largest = Statistics(calibration).max_abs(layer) / factor
    expected = 2 * largest.max().item() / 255
    assert tensors[f"{layer}.input_scale"].item() == pytest.approx(expected, rel=0.01)


def test_finer_scales_hurt_less(tiny: Path, calibration: Path, text: Tensor) -> None:
    damage = {over: divergence(tiny, calibration, text, activations=over) for over in ("static", "tensor", "token")}
    assert -1e-6 < damage["token"] < 0.005
    assert 2 * damage["token"] < damage["tensor"] < damage["static"]
    assert divergence(tiny, calibration, text, activation_bits=4) > 20 * damage["token"]


def test_smoothing_repairs_a_planted_outlier(outliers: tuple[Path, Path], text: Tensor) -> None:
    static = divergence(*outliers, text, activations="static")
    smooth = divergence(*outliers, text, activations="static", smooth=0.5)
    token = divergence(*outliers, text, activations="token")
    assert static > 20 * smooth
    assert token > 5 * smooth
    assert smooth < 0.1


def test_outliers_planted_with_care_change_nothing(tiny: Path, outliers: tuple[Path, Path], text: Tensor) -> None:
    before = logits(load(tiny), text)
    after = logits(load(outliers[0]), text)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4 * before.abs().max().item())


def test_the_manifest_says_what_was_done(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    out = made(tiny, calibration, tmp_path / "out", activations="static", smooth=0.5)
    manifest = read_manifest(out)
    assert manifest["axis"] == "activation_bits"
    assert manifest["severity"] == 8
    assert "emulated" in manifest["theoretical"]
    stored = sum(8 * t.numel() * t.element_size() for t in dict(Weights(out, tiny).items()).values())
    assert manifest["effective_bits"] == pytest.approx(stored / manifest["parameters"])
    assert 8 < manifest["layer_bits"] < 9


def test_rounding_can_be_left_out(tiny: Path, calibration: Path, text: Tensor, tmp_path: Path) -> None:
    model = load(made(tiny, calibration, tmp_path / "out", activation_bits=4), base=tiny)
    with exact():
        plain = logits(model, text)
    rounded = logits(model, text)
    base = logits(load(tiny), text)
    assert (plain - base).abs().max() < 0.2 * (rounded - base).abs().max()


def test_other_weights_with_scales_are_refused() -> None:
    weight = torch.ones(4, 4)
    for stored in (
        {"weight": weight.to(torch.float8_e4m3fn), "weight_scale": torch.ones(4, 1)},
        {"weight": weight.to(torch.int8), "weight_scale": weight, "weight_zero_point": weight},
    ):
        with pytest.raises(ValueError, match="only symmetric int8 weights are read"):
            int8.read(stored, {"weights": {}})


def test_settings() -> None:
    settings = activations.Settings(activations="static", smooth=0.5)
    assert settings.label == "W8A8, 8 bit weights, per channel, static inputs, smoothed 0.5"
    assert settings.severity == 8.0
    assert settings.statistics == ("activations",)
    assert activations.Settings(bits=4, group_size=64).curve == "4 bit weights, groups of 64, inputs per token"
    assert activations.Settings().statistics == ()
    assert activations.Settings(smooth=0.5).statistics == ("activations",)
    for wrong in ({"bits": 3}, {"activation_bits": 3}, {"activations": "row"}, {"smooth": 2}, {"x": 1}):
        with pytest.raises(ValueError, match="validation error"):
            activations.Settings.model_validate(wrong)


def test_impossible_settings_are_refused_before_any_work(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    assert activations.Settings(smooth=0.5).check(config) is None
    reason = activations.Settings(bits=4, group_size=64).check(config)
    assert reason == "group_size 64 does not divide the model's intermediate_size of 172"
