"""The cost model: it finds the coefficients it was made with, and a schedule is that of a simulation by hand."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.models.checkpoint import expected_shapes
from hemorrhage.study import params as config
from hemorrhage.study.costs import products
from hemorrhage.study.costs.jobs import PAGE, ROWS, Job, Workload, shape
from hemorrhage.study.costs.model import QUANTITIES, Costs, Observation, committed, fit
from hemorrhage.study.costs.requests import Requests
from hemorrhage.study.costs.schedule import critical_path, makespan
from hemorrhage.study.kinds import KINDS
from hemorrhage.study.plan import Plan
from hemorrhage.study.work import Shape, Work
from tests.study.test_params import DEFAULT, changed


def job(
    kind: str = "checkpoints", method: str = "rtn", parameters: float = 1, arithmetic: float = 0, **more: Any
) -> Job:
    found = {"stored": parameters, "needs": (), "name": "x", **more}
    work = Work(parameters, found["stored"], arithmetic)
    return Job(kind, found["name"], method, Path("out"), Path("usage"), work, found["needs"])


def made(jobs: list[Job], fixed: float, each: float, work: float, factors: dict[str, float]) -> list[Observation]:
    """What jobs would use if they cost exactly this."""
    found = []
    for each_job in jobs:
        seconds = fixed + each * each_job.work.parameters + work * each_job.work.arithmetic
        seconds *= factors.get(each_job.method, 1.0)
        found.append(
            Observation(each_job, seconds, 0.1, 600 + 5000 * each_job.work.parameters, 1 + 2000 * each_job.work.stored)
        )
    return found


JOBS = [
    job(method=method, parameters=parameters, arithmetic=arithmetic)
    for method in ("rtn", "gptq")
    for parameters, arithmetic in ((0.0003, 0), (0.1, 0), (0.1, 2), (7, 0), (7, 300))
]


def test_fit_finds_the_coefficients_the_jobs_were_made_with() -> None:
    content = fit(made(JOBS, 2.0, 60.0, 5.0, {"gptq": 3.0}))
    costs = Costs(content)
    for seen in made(JOBS, 2.0, 60.0, 5.0, {"gptq": 3.0}):
        predicted = costs.predict(seen.job)
        assert predicted.cpu_s == pytest.approx(seen.cpu_s, rel=0.01)
        assert predicted.rss_mb == pytest.approx(seen.rss_mb, rel=0.01)
        assert predicted.disk_mb == pytest.approx(seen.disk_mb, rel=0.01)
    larger = [costs.predict(job(parameters=size, arithmetic=size)).cpu_s for size in (0.1, 1, 10, 100)]
    assert larger == sorted(larger)


def test_two_sizes_alone_are_told_apart_by_arithmetic() -> None:
    jobs = [job("decodes", "", 0.0003, 0.001), job("decodes", "", 0.1, 0.5)]
    costs = Costs(fit(made(jobs, 1.0, 10.0, 3.0, {})))
    longer = costs.predict(job("decodes", "", 0.1, 5)).cpu_s
    assert longer > 5 * costs.predict(jobs[1]).cpu_s, "ten times as many tokens of the same model take about ten times"


def test_this_machines_jobs_correct_the_prediction_and_unknown_methods_are_said() -> None:
    content = fit(made(JOBS, 2.0, 60.0, 5.0, {}))
    slow = made(JOBS, 4.0, 120.0, 10.0, {})
    corrected = Costs(content, slow)
    assert corrected.predict(JOBS[3]).cpu_s == pytest.approx(2 * Costs(content).predict(JOBS[3]).cpu_s, rel=0.15)
    assert corrected.known(JOBS[0])
    assert not corrected.known(job(method="awq"))
    assert not corrected.known(job("harness", ""))
    assert corrected.predict(job("harness", "")).cpu_s == 0, "nothing stands in where nothing was fitted"


def test_committed_coefficients_are_whole_and_say_what_they_were_fitted_on() -> None:
    content = committed()
    assert set(QUANTITIES) | {"fitted", "safety"} == set(content)
    assert content["fitted"]["jobs"] > 30
    for name in QUANTITIES:
        assert {"base", "texts", "tasks", "calibrations", "checkpoints", "references", "evaluations", "decodes",
                "rows"} <= set(content[name])  # fmt: skip
        for fitted in content[name].values():
            assert all(value >= 0 for value in (*fitted["shared"], *fitted["methods"].values()))


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    plan = Plan(config.Params.model_validate(DEFAULT))
    monkeypatch.chdir(tmp_path)
    return Workload(plan)


def test_every_output_of_the_plan_is_a_job_and_comes_after_what_it_reads(workload: Workload) -> None:
    plan = workload.plan
    assert {key for key in workload.jobs if key not in (ROWS, PAGE)} == {
        (kind, name) for kind in KINDS for name in plan.names(kind)
    }
    seen: set[tuple[str, str]] = set()
    for key, each in workload.jobs.items():
        assert set(each.needs) <= seen, key
        seen.add(key)
    assert ("calibrations", "prose") in workload.jobs["checkpoints", "gptq-4"].needs
    assert ("calibrations", "prose") not in workload.jobs["checkpoints", "rtn-4"].needs


def test_the_wheels_size_is_known_before_it_is_there(workload: Workload) -> None:
    assert workload.shape == Shape(134515008 - 576 * 49152 - 61 * 576, 576 * 49152, 576, True)


def test_a_folders_size_is_that_of_its_files(tiny: Path) -> None:
    plan = Plan(config.Params.model_validate(changed("model", {"source": "path", "path": str(tiny)}) | SMALL))
    from transformers import AutoConfig

    counted = sum(size.numel() for size in expected_shapes(AutoConfig.from_pretrained(tiny)).values())
    found = shape(plan)
    assert found is not None
    assert found.parameters == counted


SMALL = {"compress": {"rtn": {"method": "rtn", "bits": 4, "group_size": "channel", "symmetric": False}},
         "decode": {**copy.deepcopy(DEFAULT["decode"]), "variants": []},
         "calibrate": {**DEFAULT["calibrate"], "length": 128}}  # fmt: skip


def test_requests_leave_room_and_grow_with_each_attempt(workload: Workload) -> None:
    requests = Requests(workload, Costs.read(), gpu=1)
    expected = requests.costs.predict(workload.jobs["evaluations", "gptq-4"])
    asked = [requests.mem_mb("evaluations", "gptq-4", attempt) for attempt in (1, 2, 3)]
    assert asked[0] > expected.rss_mb
    assert asked[2] == 2 * asked[1] == 4 * asked[0]
    minutes = [requests.minutes("evaluations", "gptq-4", attempt) for attempt in (1, 2)]
    assert minutes[0] * 60 > expected.cpu_s
    assert minutes[1] > 2 * minutes[0]
    assert requests.threads("evaluations", "gptq-4") == 1
    assert requests.threads("calibrations", "prose") > 1, "the run waits for it"
    assert Requests(workload, Costs.read()).gpu("evaluations") == 0


def test_a_gpu_is_asked_for_by_steps_that_run_the_model_and_by_solvers(workload: Workload) -> None:
    requests = Requests(workload, Costs.read(), gpu=1)
    assert requests.gpu("evaluations") == requests.gpu("checkpoints", "gptq-4") == 1
    assert requests.gpu("checkpoints", "rtn-4") == 0
    here, there = (re.compile(requests.named("checkpoints", on_gpu)) for on_gpu in (False, True))
    for name in workload.plan.names("checkpoints"):
        assert bool(here.fullmatch(name)) != bool(there.fullmatch(name)), "each is made by one rule"
    assert there.fullmatch("gptq-4")
    none = Requests(workload, Costs.read())
    assert not re.fullmatch(none.named("checkpoints", True), "gptq-4")
    assert re.fullmatch(none.named("checkpoints", False), "gptq-4")


def test_a_model_that_is_not_there_yet_gets_what_is_enough() -> None:
    hub = {"source": "hub", "id": "a/b", "revision": "0" * 40}
    plan = Plan(config.Params.model_validate(changed("model", hub)))
    requests = Requests(Workload(plan), Costs.read())
    assert requests.mem_mb("evaluations", "gptq-4") == 16000
    assert requests.minutes("evaluations", "gptq-4", 2) == 360


def by_hand(seconds: dict, needs: dict, threads: dict, cores: int) -> float:
    """In steps of one second: begin what is ready and fits, in order."""
    left, waiting, running, now = dict(seconds), list(seconds), {}, 0
    while waiting or running:
        for key in list(waiting):
            ready = all(need not in waiting and need not in running for need in needs[key] if need in seconds)
            if ready and sum(threads[each] for each in running) + threads[key] <= cores:
                running[key] = left[key]
                waiting.remove(key)
        now += 1
        running = {key: rest - 1 for key, rest in running.items() if rest > 1}
    return now


def test_makespan_and_critical_path_against_a_simulation_by_hand() -> None:
    keys = [("evaluations", name) for name in "abcdef"]
    needs = {key: [keys[place // 2 - 1]] if place > 1 else [] for place, key in enumerate(keys)}
    for lengths in itertools.islice(itertools.permutations((1, 2, 3, 5, 8, 13)), 0, 720, 37):
        seconds = dict(zip(keys, map(float, lengths), strict=True))
        for cores in (1, 2, 3):
            threads = dict(zip(keys, (1, 2, 1, 1, 2, 1), strict=True))
            threads = {key: min(count, cores) for key, count in threads.items()}
            assert makespan(seconds, needs, threads, cores) == by_hand(seconds, needs, threads, cores)
        path = critical_path(seconds, needs)
        chains = [[keys[0], keys[2]], [keys[0], keys[3]], [keys[1], keys[4]], [keys[1], keys[5]]]
        assert sum(seconds[key] for key in path) == max(sum(seconds[key] for key in chain) for chain in chains)


def test_speedup_is_measured_once_for_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "REMEMBERED", tmp_path / "products.json")
    monkeypatch.setattr(products, "SHAPES", ((64, 128, 128),))
    before = torch.get_num_threads()
    measured = products.speedup()
    assert 0.01 < measured < 100
    assert torch.get_num_threads() == before
    monkeypatch.setattr(products, "_measured", lambda shape: 99.0)
    assert products.speedup() == measured
    (tmp_path / "products.json").write_text(json.dumps({"another machine": 5.0}))
    assert products.speedup() == 99.0
