"""What would be made from a model that could not be made says so, along any chain of steps."""

from __future__ import annotations

from pathlib import Path

from hemorrhage.runtime import lacking
from hemorrhage.runtime.artifact import failure, read_manifest, write_manifest, writing

WHY = "small: the loss of step 3 is nan: the training has diverged"


def made(folder: Path, **fields: object) -> Path:
    with writing(folder) as part:
        write_manifest(part, **fields)
    return folder


def test_a_chain_of_steps_hands_the_reason_on(tmp_path: Path) -> None:
    training, base, text, checkpoint = (tmp_path / name for name in ("training", "base", "text", "checkpoint"))
    lacking.record(training, WHY)
    assert lacking.inherit("hemorrhage.models", [str(base), "--trained", str(training), "--spec", '{"a": 1}'])
    assert lacking.inherit("hemorrhage.data.texts", [str(text), "--base", str(base), "--needs", "1"])
    sound = made(tmp_path / "sound")
    assert lacking.inherit("hemorrhage.compress", [str(checkpoint), "--other", str(sound), "--texts", str(text)])
    for folder in (training, base, text, checkpoint):
        assert lacking.reason(folder) == failure(folder) == WHY
        assert read_manifest(folder)["checksums"] == {}


def test_a_step_of_sound_inputs_runs(tmp_path: Path) -> None:
    sound, failed = made(tmp_path / "sound"), made(tmp_path / "failed", failure="a variant has reasons of its own")
    out = tmp_path / "out"
    arguments = [str(out), "--base", str(sound), "--parent", str(failed), "--spec", "{" + "x" * 5000 + "}", "y" * 5000]
    assert not lacking.inherit("hemorrhage.compress", arguments)
    assert not out.exists()
    assert lacking.reason(tmp_path / "nothing") is None


def test_the_analysis_is_run_and_leaves_such_a_model_out(tmp_path: Path) -> None:
    lacking.record(tmp_path / "base", WHY)
    assert not lacking.inherit("hemorrhage.analyze", [str(tmp_path / "reports"), "--outputs", str(tmp_path / "base")])
