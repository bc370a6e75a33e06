"""A job that was killed in the middle goes on behind what it finished, and ends with the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.compress import progress
from hemorrhage.compress.methods.weight_quantization import autoround
from hemorrhage.compress.progress import Progress
from hemorrhage.runtime.artifact import failure, read_manifest
from tests.calibration import calibrated
from tests.compress.made import run

CASES: list[tuple[str, dict[str, Any]]] = [
    ("rtn", {"bits": 4, "group_size": 4}),
    ("hqq", {"bits": 3, "group_size": 4}),
    ("magnitude", {"sparsity": 0.5}),
    ("gptq", {"bits": 3, "group_size": 4, "sequential": True}),
    ("sparsegpt", {"sparsity": "2:4", "sequential": True}),
    ("wanda", {"sparsity": 0.5, "sequential": True}),
    ("wanda", {"sparsity": 0.5}),
    ("autoround", {"bits": 3, "group_size": 4, "iterations": 3, "batch": 2}),
]
KILLED_AFTER = 2
"""Blocks of the tiny model's five, or steps of a training's."""


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("calibration"))


def killed(out: Path, *arguments: Any) -> None:
    """Make ``out`` in a process that is killed as soon as so many blocks lie on disk."""
    child = os.fork()
    if not child:
        progress.SECONDS = 0
        write = Progress._write

        def dying(self: Progress, model: Any, index: int) -> None:
            write(self, model, index)
            if index + 1 == KILLED_AFTER:
                os.kill(os.getpid(), signal.SIGKILL)

        Progress._write = dying  # type: ignore[method-assign]
        try:
            run(out, *arguments)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    """A killed and resumed run against one in one go."""
    killed(tmp_path / "out", *arguments)
    resume = tmp_path / "out.resume"
    assert sorted(file.name for file in resume.iterdir()) == ["0.safetensors", "1.safetensors"]
    assert not (tmp_path / "out").exists()
    restored: list[int] = []
    restore = Progress.restore

    def noting(self: Progress, model: Any, index: int) -> None:
        restored.append(index)
        restore(self, model, index)

    monkeypatch.setattr(Progress, "restore", noting)
    run(tmp_path / "out", *arguments)
    assert restored == [0, 1]
    assert failure(tmp_path / "out") is None
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    run(tmp_path / "whole", *arguments)
    found, expected = (read_manifest(tmp_path / name)["checksums"] for name in ("out", "whole"))
    assert found == expected


@pytest.mark.parametrize(("method", "settings"), CASES)
def test_a_killed_compression_goes_on_and_ends_with_the_same_bits(
    tiny: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    settings: dict[str, Any],
) -> None:
    compared(tmp_path, monkeypatch, tiny, None, calibration, method, settings)


@pytest.mark.parametrize("method", ["gptq", "sparsegpt"])
def test_statistics_that_are_collected_are_those_of_unaltered_blocks(
    tiny: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run(tmp_path / "parent", tiny, None, calibration, "magnitude", {"sparsity": 0.3})
    settings = {"bits": 4, "group_size": 4} if method == "gptq" else {"sparsity": 0.6}
    compared(tmp_path, monkeypatch, tiny, tmp_path / "parent", calibration, method, settings)


def test_a_short_job_of_a_small_model_writes_no_blocks(
    tiny: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "_write", lambda *_: pytest.fail("a block was written"))
    run(tmp_path / "out", tiny, None, calibration, "rtn", {"bits": 4, "group_size": 4})


def test_a_failure_of_the_variant_keeps_no_blocks(
    tiny: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0)
    tune = autoround.tune
    calls: list[int] = []

    def failing(*arguments: Any) -> bool:
        calls.append(1)
        return len(calls) < 3 and tune(*arguments)

    monkeypatch.setattr(autoround, "tune", failing)
    run(
        tmp_path / "out",
        tiny,
        None,
        calibration,
        "autoround",
        {"bits": 3, "group_size": 4, "iterations": 1, "batch": 2},
    )
    assert "block 2: its output is not finite" in str(failure(tmp_path / "out"))
    assert not (tmp_path / "out.resume").exists()
