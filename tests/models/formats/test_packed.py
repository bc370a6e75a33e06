"""Packed integers are read as compressed-tensors, which packs them, reads them."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from hemorrhage.models.formats.packed import unpacked


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (7, 64), (2, 33), (40, 96)])
def test_codes_are_those_that_were_packed(bits: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=generator).to(torch.int8)
    codes[0, 0], codes[-1, -1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    words = pack_to_int32(codes, bits)
    found = unpacked(words, bits, shape[1])
    assert found.dtype == torch.int8
    assert torch.equal(found, codes)
    assert torch.equal(found, unpack_from_int32(words, bits, torch.Size(shape)))
    assert torch.equal(unpacked(pack_to_int32(codes, bits, packed_dim=0).T, bits, shape[0]).T, codes)
