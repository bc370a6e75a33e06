"""The jobs of a plan, and the size of its model."""

from __future__ import annotations

import copy
from pathlib import Path

from hemorrhage.models.checkpoint import expected_shapes
from hemorrhage.study import params as config
from hemorrhage.study.costs.jobs import PAGE, ROWS, Workload, shape
from hemorrhage.study.kinds import KINDS
from hemorrhage.study.plan import Plan
from hemorrhage.study.work import Shape
from tests.study.test_params import DEFAULT, changed


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
    assert workload.shape == Shape(134515008 - 576 * 49152 - 61 * 576, 576 * 49152, 576, True, 30)


def test_a_folders_size_is_that_of_its_files(tiny: Path) -> None:
    plan = Plan(config.Params.model_validate(changed("model", {"source": "path", "path": str(tiny)}) | SMALL))
    from transformers import AutoConfig

    counted = sum(size.numel() for size in expected_shapes(AutoConfig.from_pretrained(tiny)).values())
    size = shape(plan)
    assert size is not None
    assert size.parameters == counted


SMALL = {"compress": {"rtn": {"method": "rtn", "bits": 4, "group_size": "channel", "symmetric": False}},
         "decode": {**copy.deepcopy(DEFAULT["decode"]), "variants": []},
         "calibrate": {**DEFAULT["calibrate"], "length": 128}}  # fmt: skip
