"""Points that a screening adds, through the real Snakemake and DVC: made once, resumed, the same when they are named.

One story in order, in one project.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.project import REPORT, Project

pytestmark = pytest.mark.end_to_end

PROFILE = """
screen: {windows: 3, allowance: 9, confirm: {windows: 16, items: 8}}
compress: {awq: null, awq_shuffled: null, wanda: null, shortgpt: null, llama_pro: null}
analyze: {budget: {kl: LIMIT, perplexity: null}}
"""

LIMIT = 0.02


@pytest.fixture(scope="module")
def screened(project: Project) -> Project:
    """The quick profile with two sweeps, a screening and a confirmation."""
    profile = project.root / "screen.yaml"
    profile.write_text(PROFILE.replace("LIMIT", str(LIMIT)))
    project.run(sys.executable, "-m", "hemorrhage.cli", "params", str(profile))
    project.commit("screening")
    return project


def bracket(project: Project) -> dict[str, Any]:
    # Snakemake leaves one of other settings in its place.
    files = (project.root / "data/brackets/study").glob("*/bracket.json")
    file = max(files, key=lambda path: path.stat().st_mtime_ns)
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def added(project: Project) -> list[str]:
    return [each["variant"] for each in bracket(project)["added"]]


def test_a_cold_run_adds_the_points_between_and_confirms_what_could_ship(screened: Project) -> None:
    ran = screened.jobs("snakemake")
    (curve,) = (curve for curve in bracket(screened)["curves"] if curve["curve"] == "rtn")
    assert (curve["inside"], curve["outside"]) == ("rtn-8", "rtn-4")
    new, confirmed = added(screened), bracket(screened)["confirmed"]
    assert {"rtn-5", "rtn-6", "rtn-7"} <= set(new)
    assert ran == {
        "models": 1, "data.texts": 1, "data.tasks.probes": 1, "calibrate": 1, "compress": 3 + len(new), "bracket": 1,
        # Of the screening, the evaluation and the confirmation.
        "evaluate.reference": 3, "evaluate": 3 + (4 + len(new)) + len(confirmed), "data.tasks.fresh": 1,
        "decode": 2, "mitigate": 1, **REPORT,
    }  # fmt: skip
    rows = pd.read_parquet(screened.root / "reports/hemorrhage.parquet")
    assert set(new) <= set(rows.variant)
    fresh = rows[rows.metric.str.contains("{stage=confirmation}", regex=False)]
    assert set(fresh.variant) == set(confirmed)
    page = (screened.root / "reports/index.html").read_text()
    assert "Where the budget falls" in page
    assert "rtn-8 (" in page


def test_verdicts_rest_on_the_fresh_text(screened: Project) -> None:
    recommended = json.loads((screened.root / "reports/recommendation.json").read_text())
    for name, verdict in recommended["variants"].items():
        metrics = {check["metric"] for check in verdict["checks"] if check["kind"] == "kl"}
        assert all(metric.endswith("-confirmation]") for metric in metrics) == (name in bracket(screened)["confirmed"])


def test_windows_of_a_confirmation_are_in_no_other_reference(screened: Project) -> None:
    from safetensors.numpy import load_file

    def windows(kind: str) -> set[bytes]:
        (file,) = (screened.root / f"data/{kind}/base").glob("*/windows.safetensors")
        # BOS in front of each differs from none.
        return {window[1:].tobytes() for window in load_file(file)["prose"]}

    fresh = windows("confirmation_references")
    assert len(fresh) == 16
    assert not fresh & (windows("references") | windows("screen_references"))


@pytest.mark.parametrize("command", [("snakemake",), ("dvc", "repro")])
def test_nothing_changed_nothing_runs(screened: Project, command: tuple[str, ...]) -> None:
    assert not screened.jobs(*command)


def test_naming_an_added_point_screens_it_and_computes_nothing_else(screened: Project) -> None:
    screened.commit("computed")
    assert not screened.run("git", "status", "--porcelain").stdout
    screened.edit("params.yaml", "bits: [8, 4]", "bits: [8, 6, 4]")
    assert screened.jobs("dvc", "repro") == {"evaluate": 1, "bracket": 1, **REPORT}
    assert "rtn-6" not in added(screened)
    screened.run("git", "checkout", "--quiet", ".")
    screened.run("dvc", "checkout", "--force", "--quiet")
    assert not screened.jobs("snakemake")
    assert not screened.jobs("dvc", "repro")


def test_an_added_variant_is_invalidated_and_made_again_as_a_named_one(screened: Project) -> None:
    screened.run(sys.executable, "-m", "hemorrhage.cli", "invalidate", "rtn-7")
    ran = screened.jobs("snakemake")
    assert ran == {"compress": 1, "evaluate": 1 + ("rtn-7" in bracket(screened)["confirmed"]), **REPORT}


def test_a_run_that_was_killed_after_the_bracket_goes_on(screened: Project) -> None:
    """Another limit needs another bracket; its run dies as soon as that is there."""
    for name in added(screened):
        screened.run(sys.executable, "-m", "hemorrhage.cli", "invalidate", name)
    before = bracket_folders(screened)
    screened.edit("params.yaml", f"kl: {LIMIT}", f"kl: {1.01 * LIMIT}")
    screened.journal.write_text("")
    run = subprocess.Popen(
        ["snakemake", "--cores", "1"], cwd=screened.root, env=screened.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while bracket_folders(screened) == before:
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    started = screened.counted()
    again = screened.jobs("snakemake")
    assert "bracket" not in again, "it was whole"
    assert again["compress"] + started["compress"] == len(added(screened)), "what was invalidated"
    assert not screened.jobs("snakemake")
    assert not screened.jobs("dvc", "repro")


def bracket_folders(project: Project) -> set[Path]:
    return {file.parent for file in (project.root / "data/brackets/study").glob("*/manifest.json")}
