"""NF4 and FP4 against their definitions and against bitsandbytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import codebook
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.codebook import FP4, NF4, TABLES, CodebookLinear, read
from hemorrhage.models.linears import linears_of
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.whole import whole

KINDS = [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True)]


def spec(**settings: Any) -> dict[str, Any]:
    return {"sweep": "s", "method": "codebook", "settings": settings, "seed": 0}


def weights(rows: int = 48, columns: int = 128, dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[0, :9] = 0
    weight[3] = 0  # whole blocks of zeros
    return weight.to(dtype)


def dense(weight: Tensor, **settings: Any) -> Tensor:
    return CodebookLinear(codebook.quantize(weight, codebook.Settings(**settings)), None).dense()


def test_nf4_is_the_papers_quantiles() -> None:
    offset = 0.9677083
    above = [norm.ppf(offset + (0.5 - offset) * step / 8) for step in range(8)]
    below = [-norm.ppf(offset + (0.5 - offset) * step / 7) for step in range(7)]
    expected = torch.tensor(sorted([*above, 0.0, *below])) / max(above)
    torch.testing.assert_close(torch.tensor(NF4, dtype=torch.float64), expected.double(), atol=1e-6, rtol=0)


def test_fp4_is_a_float_of_four_bits() -> None:
    assert len(set(FP4)) == 15  # zero has two signs
    assert [value * 12 for value in FP4[1:8]] == pytest.approx([0.0625, 8, 12, 4, 6, 2, 3])
    assert [-value for value in FP4[8:]] == list(FP4[:8])


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [64, 128])
def test_every_weight_is_its_nearest_entry_times_the_largest_of_its_block(kind: str, width: int) -> None:
    weight = weights()
    expected = []
    for block in weight.flatten().split(width):
        largest = float(block.abs().max())
        for value in block.tolist():
            scaled = value / largest if largest else 0.0
            expected.append(largest * min(TABLES[kind], key=lambda entry: abs(entry - scaled)))
    ours = dense(weight, type=kind, block_size=width)
    torch.testing.assert_close(ours.flatten(), torch.tensor(expected), rtol=1e-6, atol=1e-9)


def test_a_matrix_whose_blocks_end_in_the_middle_of_rows() -> None:
    weight = weights(7, 51)
    settings = codebook.Settings(block_size=64)
    stored = codebook.quantize(weight, settings)
    assert len(stored["weight.absmax"]) == 6  # 357 weights
    assert stored["weight"].shape == (179, 1)
    form = read(stored, None)
    assert form.dense().shape == (7, 51)
    assert (form.dense() - weight).abs().max() < 0.16 * weight.abs().max()


def test_double_quantization_costs_little_and_saves_most_of_the_absmax() -> None:
    weight = weights()
    once, twice = (dense(weight, double=double) for double in (False, True))
    error = [(value - weight).square().mean().sqrt().item() for value in (once, twice)]
    assert error[1] == pytest.approx(error[0], rel=0.02)
    stored = codebook.quantize(weight, codebook.Settings(double=True))
    assert stored["weight.absmax"].dtype == torch.uint8
    assert len(stored["weight.nested_absmax"]) == 1


def test_the_weights_dtype_is_that_of_the_values() -> None:
    value = dense(weights(dtype=torch.bfloat16))
    assert torch.equal(value, value.bfloat16().float())
    assert not torch.equal(dense(weights()), dense(weights()).bfloat16().float())


@pytest.mark.parametrize(("kind", "double"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_absmax_and_weights_are_those_of_bitsandbytes(kind: Any, double: bool, dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    for width in (64, 256):
        weight = weights(dtype=dtype)
        settings = codebook.Settings(type=kind, block_size=width, double=double)
        ours = codebook.quantize(weight, settings)
        packed, state = functional.quantize_4bit(weight, blocksize=width, quant_type=kind, compress_statistics=double)
        theirs = {"weight": packed} | {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            if name.startswith("weight.quant_state"):
                assert json.loads(bytes(ours[name].tolist())) == json.loads(bytes(value.tolist()))
            elif name == "weight.absmax" and double:
                # Their kernel for the processor looks the nearest entry up in a coarse index, and takes the
                # second nearest where the two are as near as 1e-5; ours takes the nearest.
                apart = (ours[name].int() - value.int()).abs()
                assert apart.max() <= 1
                assert apart.float().mean() <= 0.02
            else:
                assert torch.equal(ours[name], value), name
        theirs["weight.absmax"] = ours["weight.absmax"]
        state.absmax = ours["weight.absmax"]
        assert torch.equal(read(ours, None).dense(), functional.dequantize_4bit(packed, state).float())


def test_the_dynamic_table_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(codebook.dynamic_table(), functional.create_dynamic_map())


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_a_checkpoint_reads_back_here_and_in_bitsandbytes(tiny: Path, tmp_path: Path, kind: str, double: bool) -> None:
    out = tmp_path / "checkpoint"
    compress(out, "v", tiny, None, None, [], spec(type=kind, double=double))
    manifest = read_manifest(out)
    assert "failure" not in manifest, manifest["failure"]
    model = load(out, base=tiny)
    verify(model, out)
    tensors = dict(Weights(out, tiny).items())
    weight = tensors["model.layers.0.mlp.down_proj.weight"]
    assert weight.dtype == torch.uint8
    assert weight.shape == (64 * 172 // 2, 1)
    # 4 bits a code, 32 or about 8 bits an absmax, the tables and the descriptions of 35 small layers.
    assert 4 + (8 if double else 32) / 64 < manifest["layer_bits"] < (7 if double else 5.5)

    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(whole(out, tiny), dtype=torch.float32)
    assert type(theirs.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    tokens = torch.randint(500, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, other = model(tokens).logits, theirs(tokens).logits
    assert (ours - other).abs().max() < 1e-4 * ours.abs().max()


def test_every_linear_layer_of_the_blocks_and_nothing_else(tiny: Path) -> None:
    model = load(tiny)
    number = len(linears_of(model))
    codebook.alter(model, codebook.Settings(), Context())
    forms = [module for module in model.modules() if isinstance(module, CodebookLinear)]
    assert len(forms) == number
    assert model.config.quantization_config["llm_int8_skip_modules"] == ["lm_head"]


@pytest.mark.parametrize("wrong", [{"type": "int4"}, {"block_size": 100}, {"bits": 4}, {"double": 3}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        codebook.Settings.model_validate(wrong)


def test_settings_for_people() -> None:
    settings = codebook.Settings(type="fp4", block_size=128, double=True)
    assert (settings.axis, settings.severity, settings.statistics) == ("bits", 4.0, ())
    assert settings.label == "FP4, blocks of 128, double"
    assert settings.check({}) is None
