"""The base step through the real Snakemake: folders with odd names, and what a user sees of one that is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hemorrhage.study.plan import Plan
from tests.models.sources.folders import llama, weights
from tests.project import Project

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def base(project: Project, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in a folder whose name Snakemake and the shell could take for something else; params.yaml names it."""
    folder = project.root / "it's {name} of $it"
    shutil.rmtree(folder, ignore_errors=True)
    llama(tiny, folder)
    project.run("git", "checkout", "--quiet", "params.yaml")
    project.edit("params.yaml", str(tiny), '"./it\'s {name} of $it"')
    project.edit("params.yaml", "window: 128", "window: 64")
    monkeypatch.chdir(project.root)
    return folder


def test_a_folder_with_braces_quotes_and_spaces_is_a_base(project: Project, base: Path) -> None:
    manifest = Plan.read().manifest("base", "base")
    project.run("snakemake", manifest)
    assert (project.root / manifest).with_name("model.safetensors").read_bytes() == (
        base / "model.safetensors"
    ).read_bytes()


def test_weights_of_another_architecture_end_the_run_in_one_line(project: Project, base: Path) -> None:
    weights(base, lambda state: {name: value for name, value in state.items() if ".layers.2." not in name})
    done = project.run("snakemake", check=False)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "lacks" in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: model.path: ")
    assert lines[0].endswith(
        "lacks model.layers.2.input_layernorm.weight and 12 more tensors that config.json's architecture has"
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert not Path(Plan.read().manifest("base", "base")).exists()


def test_a_file_that_is_not_whole_ends_it_before_snakemake_plans(project: Project, base: Path) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    done = project.run("snakemake", check=False)
    assert done.returncode == 1
    assert "Building DAG" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("params.yaml: model.path: ")
    assert "model.safetensors is truncated: it has" in done.stderr
