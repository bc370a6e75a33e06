"""Jobs that nobody ran, and what they would use."""

from __future__ import annotations

from pathlib import Path

from hemorrhage.study.costs.jobs import Job
from hemorrhage.study.costs.model import Observation
from hemorrhage.study.work import Work


def job(kind: str = "checkpoints", method: str = "rtn", parameters: float = 1, arithmetic: float = 0) -> Job:
    work = Work(parameters, parameters, arithmetic)
    return Job(kind, "x", method, Path("out"), Path("usage"), work, ())


def simulate(jobs: list[Job], fixed: float, each: float, work: float, factors: dict[str, float]) -> list[Observation]:
    """Return what jobs would use if they cost exactly this."""
    observations = []
    for one_job in jobs:
        seconds = fixed + each * one_job.work.parameters + work * one_job.work.arithmetic
        seconds *= factors.get(one_job.method, 1.0)
        memory, disk = 600 + 5000 * one_job.work.parameters, 1 + 2000 * one_job.work.stored
        observations.append(Observation(one_job, seconds, 0.1, memory, disk))
    return observations


JOBS = [
    job(method=method, parameters=parameters, arithmetic=arithmetic)
    for method in ("rtn", "gptq")
    for parameters, arithmetic in ((0.0003, 0), (0.1, 0), (0.1, 2), (7, 0), (7, 300))
]
