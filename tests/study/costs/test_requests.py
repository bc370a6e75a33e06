"""Resources of rules: with room for the model's error, more for each attempt."""

from __future__ import annotations

import re

import pytest

from hemorrhage.study import params as config
from hemorrhage.study.costs.jobs import Workload
from hemorrhage.study.costs.model import Costs
from hemorrhage.study.costs.requests import Requests
from hemorrhage.study.plan import Plan
from hemorrhage.study.work import Shape
from tests.study.test_params import changed


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


def test_the_plan_and_the_rules_name_the_same_memory_of_a_model_that_is_read_by_blocks(workload: Workload) -> None:
    workload.shape = Shape(blocks=6_400_000_000, embedding=131_000_000, width=4096, tied=False, number=32)
    requests = Requests(workload, Costs.read())
    memory = requests.memory("evaluations", "gptq-4")
    # Two blocks of 32, the embedding and the head in float32, and what a process takes.
    assert memory == pytest.approx(requests.costs.started("evaluations") + 4e-6 * (4e8 + 2.62e8))
    assert memory < 5000
    assert requests.mem_mb("evaluations", "gptq-4") == pytest.approx(1.3 * memory, abs=100)
    # Compressing holds one block as well, and of GPTQ 2.1 GB were measured at this width; training holds all.
    assert 2100 < requests.memory("checkpoints", "gptq-4") < 8000
    assert 1250 < requests.memory("calibrations", "prose") < 8000
    assert requests.memory("checkpoints", "slicegpt-0.25") > 20_000
    # In 31 GB it fits whole, and is not read by blocks.
    fits = Workload(Plan(config.Params.model_validate(changed("evaluate/memory_gb", 31))))
    fits.shape = workload.shape
    whole = Requests(fits, Costs.read())
    assert whole.memory("evaluations", "gptq-4") == whole.costs.predict(fits.job("evaluations", "gptq-4")).rss_mb


def test_a_gpu_is_asked_for_by_steps_that_run_the_model_and_by_solvers(workload: Workload) -> None:
    requests = Requests(workload, Costs.read(), gpu=1)
    assert requests.gpu("evaluations") == requests.gpu("checkpoints", "gptq-4") == 1
    assert requests.gpu("checkpoints", "rtn-4") == 0
    here, there = (re.compile(requests.names_pattern("checkpoints", on_gpu)) for on_gpu in (False, True))
    for name in workload.plan.names("checkpoints"):
        assert bool(here.fullmatch(name)) != bool(there.fullmatch(name)), "each is made by one rule"
    assert there.fullmatch("gptq-4")
    none = Requests(workload, Costs.read())
    assert not re.fullmatch(none.names_pattern("checkpoints", True), "gptq-4")
    assert re.fullmatch(none.names_pattern("checkpoints", False), "gptq-4")


def test_a_model_that_is_not_there_yet_gets_what_is_enough() -> None:
    hub = {"source": "hub", "id": "a/b", "revision": "0" * 40}
    plan = Plan(config.Params.model_validate(changed("model", hub)))
    requests = Requests(Workload(plan), Costs.read())
    assert requests.mem_mb("evaluations", "gptq-4") == 16000
    assert requests.minutes("evaluations", "gptq-4", 2) == 360
