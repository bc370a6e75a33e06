"""layers.json against the definition of an SQNR, written out, and against alterations that change nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.checks.fidelity import LAYERS, LIMIT, unscaled
from hemorrhage.models.checkpoint import load
from tests.calibration import calibrated
from tests.layers import layer_of


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("fidelity"))


def made(
    out: Path, tiny: Path, calibration: Path | None, method: str, parent: Path | None = None, **settings: Any
) -> Any:
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    compress(out, out.name, tiny, parent, calibration, [], {**spec, "on": parent and parent.name})
    return json.loads((out / LAYERS).read_text())


def test_sqnr_is_its_definition(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    found = made(tmp_path / "gptq", tiny, calibration, "gptq", bits=3, group_size=4)
    statistics = Statistics(calibration)
    before, after = (load(folder, base=tiny).requires_grad_(False) for folder in (tiny, tmp_path / "gptq"))
    first = {name: first for first, names in statistics.shared().items() for name in names}
    assert set(found) == set(first)
    for name, values in found.items():
        w, v = layer_of(before, name).weight.double(), layer_of(after, name).weight.double()
        expected = 10 * math.log10(w.square().sum() / (v - w).square().sum())
        assert values["weight_sqnr"] == pytest.approx(expected, abs=0.01)
        assert values["weight_outliers"] == pytest.approx((w.abs().max() / w.square().mean().sqrt()).item(), rel=1e-4)
        moment = statistics.second_moment(first[name]).double()
        rows = torch.linspace(0, len(w) - 1, min(64, len(w))).long()
        signal, noise = (torch.trace(x[rows] @ moment @ x[rows].T) for x in (w, v - w))
        assert values["output_sqnr"] == pytest.approx(10 * math.log10(signal / noise), abs=0.01)
        assert values["tokens"] == 6 * 32


def test_errors_that_gptq_makes_up_for_show_in_outputs_only(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    rounded = made(tmp_path / "rtn", tiny, None, "rtn", bits=3, group_size=4)
    made_up = made(tmp_path / "gptq", tiny, calibration, "gptq", bits=3, group_size=4)
    mean = {
        key: sum(one["weight_sqnr"] for one in each.values()) for key, each in (("rtn", rounded), ("gptq", made_up))
    }
    assert mean["gptq"] < mean["rtn"]
    assert all("output_sqnr" not in one for one in rounded.values())
    assert all(one["output_sqnr"] > one["weight_sqnr"] for one in made_up.values())


def test_scales_that_change_nothing_are_taken_out() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(40, 30, generator=generator)
    r, c = torch.rand(40, 1, generator=generator) + 0.2, torch.rand(1, 30, generator=generator) + 0.2
    left = unscaled(w, r * w * c) - w
    assert 10 * torch.log10(w.square().sum() / left.square().sum()) > 50


def test_awq_is_as_near_as_rounding_is(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    rounded = made(tmp_path / "rtn", tiny, None, "rtn", bits=4, group_size=4)
    scaled = made(tmp_path / "awq", tiny, calibration, "awq", bits=4, group_size=4)
    for name, values in rounded.items():
        assert values["weight_sqnr"] - 6 < scaled[name]["weight_sqnr"]


def test_blocks_are_compared_with_those_they_were_made_from(tiny: Path, tmp_path: Path) -> None:
    cut = made(tmp_path / "cut", tiny, None, "depth", removed=0.4, order="random")
    assert cut
    assert all(values["weight_sqnr"] == LIMIT for values in cut.values())
    both = made(tmp_path / "both", tiny, None, "rtn", tmp_path / "cut", bits=3, group_size=4)
    alone = made(tmp_path / "alone", tiny, None, "rtn", bits=3, group_size=4)
    kept = json.loads((tmp_path / "cut" / "manifest.json").read_text())["blocks"]
    for name, values in both.items():
        head, place, tail = name.split(".", 3)[1], int(name.split(".")[2]), name.split(".", 3)[3]
        assert values["weight_sqnr"] == alone[f"model.{head}.{kept[place]}.{tail}"]["weight_sqnr"]


def test_nothing_is_compared_across_bases(tiny: Path, tmp_path: Path) -> None:
    found = made(tmp_path / "turned", tiny, None, "rotation", bits=4, group_size="channel", transform="quarot")
    assert found == {}
