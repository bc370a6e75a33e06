"""The calibration as an importance matrix, and a variant that is made with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hemorrhage import cli
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.imatrix import read
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.command import NOT_MEASURED, USAGE, YES
from tests.calibration import calibrated
from tests.models.formats.test_gguf_file import spec, wide

__all__ = ["wide"]


@pytest.fixture(scope="module")
def calibration(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(wide, tmp_path_factory.mktemp("calibration"))


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_a_variant_of_the_written_file_is_that_of_the_calibration(
    suffix: str, wide: Path, calibration: Path, tmp_path: Path
) -> None:
    file = tmp_path / f"model{suffix}"
    assert cli.main(["imatrix", str(file), "--base", str(wide), "--calibration", str(calibration)]) == YES
    squares, statistics = read(file), Statistics(calibration)
    first = next(name for name in statistics.shared() if name.endswith("layers.1.mlp.gate_proj"))
    torch.testing.assert_close(squares["blk.1.ffn_up.weight"], statistics.norms(first).square())
    assert len(squares) == 14
    made = []
    for name, given in (("file", {"imatrix": str(file)}), ("own", {"importance": True}), ("none", {})):
        compress(tmp_path / name, "v", wide, None, calibration, [], spec(type="q3_k_m", **given))
        assert "failure" not in read_manifest(tmp_path / name), read_manifest(tmp_path / name)["failure"]
        made.append({key: layer.weight for key, layer in linears_of(load(tmp_path / name)).items()})
    # A sum over a count differs from the mean in the last place, which may tip the choice between two scales.
    same = [torch.isclose(value, made[1][key]).float().mean() for key, value in made[0].items()]
    assert min(same) > 0.95
    assert not torch.equal(made[1]["model.layers.1.mlp.up_proj"], made[2]["model.layers.1.mlp.up_proj"])


def test_a_file_of_another_model_fails_in_one_line(wide: Path, calibration: Path, tiny: Path, tmp_path: Path) -> None:
    assert cli.main(["imatrix", str(tmp_path / "a.dat"), "--base", str(wide), "--calibration", str(calibration)]) == YES
    compress(tmp_path / "v", "v", tiny, None, None, [], spec(type="q4_k", imatrix=str(tmp_path / "a.dat")))
    assert "is the importance matrix of another model: it has 2 blocks, this one 5" in str(
        read_manifest(tmp_path / "v")["failure"]
    )


def test_what_is_missing_or_there_already_is_named(
    wide: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.dat").touch()
    folders = ["--base", str(wide), "--calibration"]
    assert cli.main(["imatrix", str(tmp_path / "a.dat"), *folders, str(calibration)]) == USAGE
    assert "exists already; nothing is overwritten" in capsys.readouterr().err
    assert cli.main(["imatrix", str(tmp_path / "b.dat"), *folders, str(tmp_path / "none")]) == NOT_MEASURED
    assert "run the calibrate step first" in capsys.readouterr().err
    assert cli.main(["imatrix", str(tmp_path / "b.txt"), *folders, str(calibration)]) == USAGE
    assert "b.txt: an importance matrix is a file .gguf or .dat" in capsys.readouterr().err
