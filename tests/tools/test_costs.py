"""``hemorrhage costs``: what is missing, what ran next to its prediction, and how the command ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hemorrhage import cli
from hemorrhage.runtime.command import CANNOT_TELL, USAGE, YES
from hemorrhage.study import params as config
from hemorrhage.study.costs import products
from hemorrhage.study.costs.jobs import Workload
from hemorrhage.study.costs.model import newest, observe
from hemorrhage.study.plan import Plan
from hemorrhage.tools import costs
from tests.study.test_params import DEFAULT, changed
from tests.test_cli import ended


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    """The default study in a folder where nothing is made yet."""
    YAML().dump(DEFAULT, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(products, "speedup", lambda: 2.1)
    return Workload(Plan.read())


def finish(workload: Workload, name: str) -> Path:
    """Leave behind what an evaluation of ten CPU seconds does; returns its manifest."""
    job = workload.jobs["evaluations", name]
    job.output.parent.mkdir(parents=True)
    job.output.write_text("{}")
    job.usage.parent.mkdir(parents=True)
    job.usage.write_text("s\tmax_rss\tcpu_time\tstart_up\n9.0\t1000.0\t10.0\t1.0\n")
    return job.output


def test_it_shows_what_is_missing_and_what_ran_next_to_its_prediction(workload: Workload) -> None:
    shown = costs.show(workload.plan, 2, False)
    assert "to be made" in shown
    assert "multiplies bfloat16 2.1 times as fast" in shown
    models = len(workload.plan.variants) + 1
    assert f"evaluations       {models}" in shown
    assert "what ran" not in shown
    output = finish(workload, "rtn-4")
    shown = costs.show(workload.plan, 2, False)
    assert f"evaluations       {models - 1}" in shown
    assert "what ran" in shown
    assert " 10%" in shown, "start-up's share"
    moved = newest(
        Workload(Plan(config.Params.model_validate(changed("cache_version", 2)))).jobs["evaluations", "rtn-4"]
    )
    assert [seen.cpu_s for seen in observe([moved])] == [10.0], "at another address, after an edit of the code"
    output.write_text(json.dumps({"failure": "out of memory"}))
    assert not observe([workload.jobs["evaluations", "rtn-4"]])


def test_memory_that_the_machine_lacks_is_said_as_loudly_as_disk(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "machine_memory", lambda: 64_000_000_000)
    assert "memory: 64000 MB\n" in costs.show(workload.plan, 2, False)
    monkeypatch.setattr(costs, "machine_memory", lambda: 600_000_000)
    (line,) = (line for line in costs.show(workload.plan, 2, False).splitlines() if line.startswith("memory: "))
    assert line.startswith("memory: 600 MB -- NOT ENOUGH for base (")
    assert "decodes (" in line
    assert "texts (" not in line


def test_a_machine_reads_the_same_numbers(workload: Workload, capsys: pytest.CaptureFixture[str]) -> None:
    finish(workload, "rtn-4")
    assert cli.main(["costs", "--cores", "2", "--json"]) == YES
    content = json.loads(capsys.readouterr().out)
    missing = content["missing"]
    assert missing["total"]["jobs"] == sum(kind["jobs"] for kind in missing["kinds"].values()) == len(workload.jobs) - 1
    assert missing["total"]["cpu_minutes"] == pytest.approx(
        sum(kind["cpu_minutes"] for kind in missing["kinds"].values())
    )
    assert missing["least_minutes"] <= missing["minutes"] <= missing["total"]["cpu_minutes"]
    assert missing["gpu_hours"] is None
    assert content["ran"]["evaluations"]["cpu_minutes"] == pytest.approx(10 / 60)
    assert cli.main(["costs", "--gpu", "--json"]) == YES
    assert json.loads(capsys.readouterr().out)["missing"]["gpu_hours"] > 0


def test_the_power_of_a_confirmation_is_said_before_it_runs(workload: Workload) -> None:
    assert "confirmation" not in costs.show(workload.plan, 2, False)

    def lines(items: int) -> list[str]:
        confirm = {"windows": 8, "items": items}
        return costs.power_lines(
            config.Params.model_validate(changed("screen", {"windows": 4, "allowance": 4, "confirm": confirm}))
        )

    few, many = lines(96), lines(2000)
    assert [line.split(":")[1].split(" for ")[0] for line in few] == [" 384 items, TOO FEW"] * 2
    assert [" for flips:" in few[0], " for accuracy_loss_points:" in few[1]] == [True, True]
    assert [line.split(":")[1].split(" for ")[0] for line in many] == [" 8,000 items, enough"] * 2


def test_a_model_that_is_not_here_yet_has_no_price(workload: Workload, capsys: pytest.CaptureFixture[str]) -> None:
    YAML().dump(changed("model", {"source": "hub", "id": "a/b", "revision": "0" * 40}), Path("params.yaml"))
    assert cli.main(["costs"]) == CANNOT_TELL
    (line,) = capsys.readouterr().err.splitlines()
    assert "its size is not known: `snakemake calibrated` fetches it first" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cores", "0"], "'0' is not a number of cores"),
        (["--cores", "many"], "'many' is not a number of cores"),
        (["fit", "nowhere"], "nowhere is not a folder"),
        (["fit", "."], "no job of the plans in these folders has a usage file"),
    ],
)
def test_wrong_usage_is_one_line(
    workload: Workload, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert ended("costs", *arguments) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_memory_of_the_base_at_work(workload: Workload) -> None:
    shown = costs.show(workload.plan, 2, False, 8, 1024)
    assert "8 x 1024 tokens" in shown
    (decoding,) = (line.split() for line in shown.splitlines() if line.startswith("decoding"))
    content = costs.as_json(workload.plan, 2, False, 8, 1024)["memory"]
    assert content is not None
    # 30 layers with 3 heads of 64 for keys, 16 bits a number.
    assert content["decoding"]["cache"] == 2 * 2 * 8 * 1024 * 30 * 3 * 64
    assert decoding[2] == f"{content['decoding']['cache'] / 1e6:,.0f}"
    assert content["training"]["optimizer"] == 2 * content["training"]["gradients"]
