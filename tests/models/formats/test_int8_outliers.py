"""Bytes beside columns of 16 bits: what is written is read bit for bit, and takes the bytes it should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hemorrhage.models.formats.int8_outliers import Int8OutlierLinear, read


def tensors(rows: int = 5, columns: int = 7, spared: tuple[int, ...] = (6, 2)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)
    chosen = torch.tensor(spared, dtype=torch.long)
    return {
        "outlier_codes": codes.index_fill(1, chosen, 0),
        "outlier_scale": torch.rand(rows, generator=generator),
        "input_spared": chosen,
        "outlier_weight": torch.randn(rows, len(spared), generator=generator).bfloat16(),
    }


@pytest.mark.parametrize("spared", [(), (3,), (6, 2)])
def test_reads_back_from_disk_bit_for_bit(tmp_path: Path, spared: tuple[int, ...]) -> None:
    stored = tensors(spared=spared)
    save_file(Int8OutlierLinear(stored, None).stored(), tmp_path / "layer.safetensors")
    assert (tmp_path / "layer.safetensors").stat().st_size >= 35 + 20 + 8 * len(spared) + 10 * len(spared)
    layer = read(load_file(tmp_path / "layer.safetensors"), None)
    assert all(torch.equal(layer.stored()[name], value) for name, value in stored.items())
    W = layer.dense()
    for i in range(5):
        for j in range(7):
            expected = stored["outlier_codes"][i, j].item() * stored["outlier_scale"][i].item()
            if j in spared:
                expected = stored["outlier_weight"][i, spared.index(j)].item()
            assert W[i, j].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"outlier_scale": torch.ones(4)},
        {"outlier_weight": torch.ones(5, 1)},
        {"input_spared": torch.tensor([2, 2])},
        {"input_spared": torch.tensor([2, 7])},
        {"input_spared": torch.tensor([2, -1])},
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="does not fit outlier_codes"):
        read({**tensors(), **change}, None)
