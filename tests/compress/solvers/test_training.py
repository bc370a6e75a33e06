"""Tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hemorrhage.compress.solvers import training
from hemorrhage.compress.solvers.training import Training
from hemorrhage.runtime.artifact import failure, read_manifest
from tests.calibration import calibrated
from tests.compress.made import run

KILLED_AFTER = 2
"""Blocks of the tiny model's five, or steps of a training's."""


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("calibration"))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("qat", {"bits": 4, "group_size": 4, "steps": 5}),
        ("qat", {"bits": 4, "group_size": 4, "steps": 5, "shuffled": True, "keep_zeros": True}),
        ("recovery", {"steps": 5, "rank": 2}),
    ],
)
def test_a_killed_training_goes_on_behind_its_finished_steps(
    tiny: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    settings: dict[str, Any],
) -> None:
    run(tmp_path / "parent", tiny, None, calibration, "magnitude", {"sparsity": 0.3})
    arguments = (tiny, tmp_path / "parent", calibration, method, settings)
    finish = Training.finish

    def dying(self: Training, loss: float) -> None:
        finish(self, loss)
        if len(self.losses) == KILLED_AFTER:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "SECONDS", 0)
        patched.setattr(Training, "finish", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", *arguments)
    assert (tmp_path / "out.resume" / training.FILE).is_file()
    assert not (tmp_path / "out").exists()
    steps: list[float] = []

    def noting(self: Training, loss: float) -> None:
        steps.append(loss)
        finish(self, loss)

    monkeypatch.setattr(Training, "finish", noting)
    run(tmp_path / "out", *arguments)
    assert failure(tmp_path / "out") is None
    assert len(steps) == 5 - KILLED_AFTER
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    run(tmp_path / "whole", *arguments)
    found, expected = (read_manifest(tmp_path / name)["checksums"] for name in ("out", "whole"))
    assert found == expected
