"""LLM.int8 against its paper's formula, product by product, and from disk through the step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.activation_quantization import llm_int8
from hemorrhage.models.checkpoint import load
from hemorrhage.models.emulation.activations import SparingRounding
from hemorrhage.models.formats.int8_outliers import Int8OutlierLinear
from hemorrhage.models.formats.storage import formatted_layers
from hemorrhage.models.reload import verify
from tests.calibration import calibrated
from tests.compress.made import spec
from tests.layers import layer_of


def literal(W: Tensor, x: Tensor, outliers: list[int]) -> list[float]:
    """The output of one token: an integer product between largest values, and one of floats."""
    features = [j for j in range(len(x)) if j not in outliers]
    largest_x = max(abs(x[j].item()) for j in features)
    codes = {j: round(127 * x[j].item() / largest_x) for j in features}
    outputs = []
    for row in W:
        largest = max(abs(row[j].item()) for j in features)
        products = sum(round(127 * row[j].item() / largest) * codes[j] for j in features)
        exact = sum(row[j].item() * x[j].item() for j in outliers)
        outputs.append(products * largest * largest_x / 127**2 + exact)
    return outputs


@pytest.mark.parametrize("outliers", [[], [4], [0, 12]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_those_of_the_decomposition(outliers: list[int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(6, 13, generator=generator).to(dtype)
    x = torch.randn(3, 13, generator=generator)
    x[:, outliers] *= 20
    chosen = torch.tensor(outliers, dtype=torch.long)
    layer = Int8OutlierLinear(llm_int8.quantize(W, chosen), None)
    y = SparingRounding(chosen).round(x) @ layer.dense().T
    for token, output in zip(x, y, strict=True):
        assert output.tolist() == pytest.approx(literal(W.float(), token, outliers), abs=1e-4, rel=1e-4)


def test_rows_and_tokens_of_zeros() -> None:
    layer = Int8OutlierLinear(llm_int8.quantize(torch.zeros(2, 5), torch.tensor([1])), None)
    assert not layer.dense().any()
    assert not SparingRounding(torch.tensor([1])).round(torch.zeros(1, 5)).any()


@pytest.mark.parametrize("threshold", [1.5, None])
def test_a_bfloat16_model_of_odd_widths_through_the_step(odd: Path, tmp_path: Path, threshold: float | None) -> None:
    calibration = calibrated(odd, tmp_path)
    out = tmp_path / "out"
    compress(out, "v", odd, None, calibration, [], spec("llm_int8", threshold=threshold))
    manifest = json.loads((out / "manifest.json").read_text())
    assert "failure" not in manifest, manifest
    verify(load(out, base=odd), out)
    columns = manifest["outlier_columns"]
    assert sum(columns.values()) == 0 if threshold is None else 0 < sum(columns.values()) < 42 * len(columns)
    base = load(odd)
    for name, layer in formatted_layers(load(out, as_stored=True, base=odd)).items():
        W = layer_of(base, name).weight
        stored = layer.stored()
        # Columns of outliers are the base's, bit for bit; others are at most half a step away.
        spared = stored["input_spared"]
        assert torch.equal(layer.dense()[:, spared], W[:, spared].float())
        error = (layer.dense() - W.float()).abs().amax(1)
        assert bool((error <= 0.5001 * stored["outlier_scale"]).all())


def test_outliers_in_16_bits_do_less_harm() -> None:
    generator = torch.Generator().manual_seed(2)
    W, x = torch.randn(32, 48, generator=generator), torch.randn(64, 48, generator=generator)
    x[:, 5] *= 60
    errors = []
    for chosen in (torch.tensor([5]), torch.empty(0, dtype=torch.long)):
        layer = Int8OutlierLinear(llm_int8.quantize(W, chosen), None)
        errors.append((SparingRounding(chosen).round(x) @ layer.dense().T - x @ W.T).norm().item())
    assert errors[0] < 0.2 * errors[1]
