"""Studies by revision: what a name means, and what is said where there is no study."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from dvc.repo import Repo

from hemorrhage.runtime.command import CommandError
from hemorrhage.tools import revisions
from tests.analyze.rows.made import row
from tests.tools.test_compare import experiment, run, study

__all__ = ["study"]


def test_a_revision_without_rows_is_one_line(study: Path) -> None:
    for file in (study / ".dvc/cache").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(CommandError, match=r"HEAD: DVC has no reports/hemorrhage\.parquet"):
        revisions.read("HEAD")
    (study / "reports/hemorrhage.parquet").unlink()
    with pytest.raises(CommandError, match="does not exist; run the study"):
        revisions.read("workspace")


def test_an_experiment_is_found_by_its_name(study: Path) -> None:
    head = experiment("five", 0.2)
    (one,) = revisions.experiments()
    assert (one.name, one.baseline) == ("five", head)
    assert revisions.resolve("five") == one.commit
    assert revisions.read("five").rows.estimate.tolist() == [0.0, 0.2]
    with pytest.raises(CommandError, match=r"six is no revision .* \(experiments: five\)"):
        revisions.resolve("six")


def test_of_two_experiments_of_one_name_that_of_head_is_meant(study: Path) -> None:
    experiment("five", 0.2)
    run("git", "commit", "--quiet", "--all", "--allow-empty", "--message", "later")
    later = experiment("five", 0.3)
    of_head = next(each for each in revisions.experiments() if each.baseline == later)
    assert revisions.resolve("five") == of_head.commit
    run("git", "commit", "--quiet", "--allow-empty", "--message", "latest")
    with pytest.raises(CommandError, match="five is the name of 2 experiments; name one by its commit"):
        revisions.resolve("five")


def test_head_belongs_to_its_experiments_once_its_params_were_run(study: Path) -> None:
    experiment("five", 0.2)
    with pytest.raises(CommandError, match="only five has a study"):
        revisions.of_head()
    Path("dvc.lock").write_text("stages: {analyze: {params: {params.yaml: {compress: {rtn: {bits: [4]}}}}}}\n")
    run("git", "add", "dvc.lock")
    run("git", "commit", "--quiet", "--message", "run")
    experiment("six", 0.2)
    assert revisions.of_head() == ["HEAD", "six"], "five is of the commit before"
    Path("params.yaml").write_text("compress: {rtn: {bits: [2]}}\n")
    run("git", "commit", "--quiet", "--all", "--message", "asks for more")
    experiment("seven", 0.2)
    with pytest.raises(CommandError, match="only seven has a study"):
        revisions.of_head()


def test_variants_of_several_models_are_told_apart(study: Path) -> None:
    table = pd.DataFrame([row("rtn", "kl_mean[w1]", value) for value in (0.1, 0.2)])
    table.insert(0, "model", ["small", "large"])
    table.to_parquet("reports/hemorrhage.parquet")
    assert revisions.read("workspace").rows.variant.tolist() == ["small/rtn", "large/rtn"]


def test_rows_come_from_a_remote_that_only_this_folder_names(
    study: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """DVC alone asks the commit where its data is."""
    store = tmp_path_factory.mktemp("store")
    (study / ".dvc/config.local").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {store}\n")
    with Repo() as repo:
        repo.push()
    for file in (study / ".dvc/cache").rglob("*"):
        if file.is_file():
            file.unlink()
    assert revisions.read("HEAD").rows.estimate.tolist() == [0.0, 0.1]
