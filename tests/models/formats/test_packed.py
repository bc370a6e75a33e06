"""Packed integers are read as compressed-tensors, which packs them, reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.packed import unpack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (7, 64), (2, 33), (40, 96)])
def test_codes_are_those_that_were_packed(bits: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=generator).to(torch.int8)
    codes[0, 0], codes[-1, -1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    words = pack_to_int32(codes, bits)
    found = unpack(words, bits, shape[1])
    assert found.dtype == torch.int8
    assert torch.equal(found, codes)
    assert torch.equal(found, unpack_from_int32(words, bits, torch.Size(shape)))
    assert torch.equal(unpack(pack_to_int32(codes, bits, packed_dim=0).T, bits, shape[0]).T, codes)


def packed(tiny: Path, out: Path, bits: int) -> Path:
    """``tiny`` as a pack-quantized checkpoint: rows asymmetric, written by compressed-tensors itself."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    arguments = QuantizationArgs(num_bits=bits, type="int", strategy="channel", symmetric=False)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    apply_quantization_config(
        model,
        QuantizationConfig(
            config_groups={"all": scheme}, ignore=["lm_head"], quantization_status=QuantizationStatus.FROZEN
        ),
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and hasattr(module, "quantization_scheme"):
            low, high = module.weight.data.aminmax(dim=1, keepdim=True)
            scale, zero = calculate_qparams(low, high, arguments)
            module.weight_scale.data = scale.to(module.weight_scale.dtype)
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(str(out))
    return out


def codes(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first ``count`` signed codes of each row of packed int32 ``words``, bit by bit."""
    rows = []
    for row in words.tolist():
        stream = "".join(format(word & 0xFFFFFFFF, "032b")[::-1] for word in row)
        values = [int(stream[at * bits : (at + 1) * bits][::-1], 2) for at in range(count)]
        rows.append([value - 2 ** (bits - 1) for value in values])
    return torch.tensor(rows)


@pytest.mark.parametrize("bits", [3, 4])
def test_packed_checkpoint_becomes_dense_scale_times_code(tiny: Path, tmp_path: Path, bits: int) -> None:
    folder = packed(tiny, tmp_path / "packed", bits)
    stored = load_file(folder / "model.safetensors")
    model = load(folder)
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        assert set(module.state_dict()) == {"weight"}, name
        assert "forward" not in vars(module), name
        count = int(stored[f"{name}.weight_shape"][1])
        zero = codes(stored[f"{name}.weight_zero_point"].T, bits, len(module.weight)).T
        expected = stored[f"{name}.weight_scale"] * (codes(stored[f"{name}.weight_packed"], bits, count) - zero)
        torch.testing.assert_close(module.weight.data, expected.float(), rtol=0, atol=0)
