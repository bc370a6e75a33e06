"""The cost model: it finds the coefficients that the jobs were made with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hemorrhage.study.costs.model import QUANTITIES, Costs, fit, newest, observe, read_coefficients, terms
from hemorrhage.study.work import Work
from tests.study.costs.invented import JOBS, job, simulate


def test_fit_finds_the_coefficients_the_jobs_were_made_with() -> None:
    content = fit(simulate(JOBS, 2.0, 60.0, 5.0, {"gptq": 3.0}))
    costs = Costs(content)
    for seen in simulate(JOBS, 2.0, 60.0, 5.0, {"gptq": 3.0}):
        predicted = costs.predict(seen.job)
        assert predicted.cpu_s == pytest.approx(seen.cpu_s, rel=0.01)
        assert predicted.rss_mb == pytest.approx(seen.rss_mb, rel=0.01)
        assert predicted.disk_mb == pytest.approx(seen.disk_mb, rel=0.01)
    larger = [costs.predict(job(parameters=size, arithmetic=size)).cpu_s for size in (0.1, 1, 10, 100)]
    assert larger == sorted(larger)


def test_two_sizes_alone_are_distinguished_by_arithmetic() -> None:
    jobs = [job("decodes", "", 0.0003, 0.001), job("decodes", "", 0.1, 0.5)]
    costs = Costs(fit(simulate(jobs, 1.0, 10.0, 3.0, {})))
    longer = costs.predict(job("decodes", "", 0.1, 5)).cpu_s
    assert longer > 5 * costs.predict(jobs[1]).cpu_s, "ten times as many tokens of the same model take about ten times"


def test_this_machines_jobs_correct_the_prediction_and_unknown_methods_are_said() -> None:
    content = fit(simulate(JOBS, 2.0, 60.0, 5.0, {}))
    slow = simulate(JOBS, 4.0, 120.0, 10.0, {})
    corrected = Costs(content, slow)
    assert corrected.predict(JOBS[3]).cpu_s == pytest.approx(2 * Costs(content).predict(JOBS[3]).cpu_s, rel=0.15)
    assert corrected.is_fitted(JOBS[0])
    assert not corrected.is_fitted(job(method="awq"))
    assert not corrected.is_fitted(job("harness", ""))
    assert corrected.predict(job("harness", "")).cpu_s == 0, "no other kind is used where nothing was fitted"


def test_committed_coefficients_are_whole_and_say_what_they_were_fitted_on() -> None:
    content = read_coefficients()
    assert set(QUANTITIES) | {"fitted", "safety"} == set(content)
    assert content["fitted"]["jobs"] > 30
    for name in QUANTITIES:
        assert {"base", "texts", "tasks", "calibrations", "checkpoints", "references", "evaluations", "decodes",
                "rows"} <= set(content[name])  # fmt: skip
        for fitted in content[name].values():
            assert all(value >= 0 for value in (*fitted["shared"], *fitted["methods"].values()))


def test_terms_are_what_a_quantity_grows_with() -> None:
    work = replace(job(), work=Work(2.0, 3.0, 5.0))
    assert [terms(name, work) for name in QUANTITIES] == [(1.0, 2.0, 5.0), (1.0, 2.0), (1.0, 3.0)]


def test_usage_is_read_of_jobs_that_did_not_fail(tmp_path: Path) -> None:
    done = replace(job(), output=tmp_path / "x/aa/manifest.json", usage=tmp_path / "x-aa.tsv")
    assert observe([done]) == []
    done.output.parent.mkdir(parents=True)
    done.output.write_text("{}")
    done.usage.write_text("s\tmax_rss\tcpu_time\tstart_up\n9.0\t1000.0\t10.0\t1.0\n")
    (observation,) = observe([done])
    assert (observation.cpu_s, observation.start_s) == (10.0, 1.0)
    assert observation.rss_mb == pytest.approx(1048.576)
    assert observation.disk_mb == pytest.approx(2e-6)
    done.output.write_text(json.dumps({"failure": "out of memory"}))
    assert observe([done]) == []


def test_the_newest_usage_file_counts_at_whatever_address(tmp_path: Path) -> None:
    first, second = "0" * 12, "1" * 12
    here = replace(job(), output=tmp_path / "x" / first / "manifest.json", usage=tmp_path / f"x-{first}.tsv")
    assert newest(here) == here
    (tmp_path / f"x-{second}.tsv").touch()
    assert newest(here).usage == tmp_path / f"x-{second}.tsv"
    assert newest(here).output == tmp_path / "x" / second / "manifest.json"
