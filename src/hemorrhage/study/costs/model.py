"""From work to seconds, memory and disk: non-negative coefficients, fitted on usage files of runs.

A job of a kind costs ``fixed + a · parameters + b · arithmetic``, times a factor of its method. CPU seconds, not
wall-clock: on a machine that does other things, too, only these repeat. Coefficients are those of least squares of
relative errors (scipy's nnls), so that a job of ten seconds counts as much as one of ten minutes; none is negative, so
that a larger model never costs less.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hemorrhage.runtime.address import ADDRESS_LENGTH
from hemorrhage.study.costs.jobs import Job
from hemorrhage.study.kinds import KINDS

COEFFICIENTS = Path(__file__).with_name("coefficients.json")

QUANTITIES = ("cpu_s", "rss_mb", "disk_mb")

ROUNDS = 20
"""How often the shared coefficients and the methods' factors are fitted in turn."""


@dataclass(frozen=True)
class Observation:
    """A job that ran: what it is, and what it used."""

    job: Job
    cpu_s: float
    start_s: float
    rss_mb: float
    disk_mb: float


@dataclass(frozen=True)
class Cost:
    """CPU seconds, resident memory and disk in MB (10⁶ bytes), as predicted."""

    cpu_s: float
    rss_mb: float
    disk_mb: float


def observed(jobs: Iterable[Job]) -> list[Observation]:
    """The jobs among these that have a usage file and an output that is no failure."""
    found = []
    for job in jobs:
        if job.usage.is_file() and (job.there or not job.is_kept):
            header, row = (line.split("\t") for line in job.usage.read_text(encoding="utf-8").splitlines()[:2])
            used = dict(zip(header, map(float, row), strict=True))
            disk = 0.0
            if job.is_kept:
                if "failure" in json.loads(job.output.read_text(encoding="utf-8")):
                    continue
                disk = 1e-6 * sum(file.stat().st_size for file in job.output.parent.rglob("*") if file.is_file())
            memory = used["max_rss"] * 1.048576
            found.append(Observation(job, used["cpu_time"], used.get("start_up", 0.0), memory, disk))
    return found


def newest(job: Job) -> Job:
    """The job with the usage file and the output of its latest run, at whatever address: code may have moved since."""
    stem = f"{job.name}-" if job.is_kept else ""
    files = sorted(
        job.usage.parent.glob(f"{stem}{'[0-9a-f]' * ADDRESS_LENGTH}.tsv"), key=lambda file: file.stat().st_mtime
    )
    if not files or not job.is_kept:
        return replace(job, usage=files[-1]) if files else job
    key = files[-1].stem.removeprefix(stem)
    return replace(job, usage=files[-1], output=job.output.parent.with_name(key) / job.output.name)


class Costs:
    """The fitted model. ``local`` corrects it by what this machine's own jobs used."""

    def __init__(self, content: dict[str, Any], local: Sequence[Observation] = ()) -> None:
        self.content = content
        self.factors = self._factors(local)

    @classmethod
    def read(cls, local: Sequence[Observation] = ()) -> Costs:
        """The committed coefficients."""
        return cls(json.loads(COEFFICIENTS.read_text(encoding="utf-8")), local)

    def _factors(self, local: Sequence[Observation]) -> dict[str, float]:
        """Kind -> how many times as long this machine takes: the median of its jobs, drawn to 1 where they are few."""
        ratios: dict[str, list[float]] = {}
        for seen in local:
            expected = self._quantity("cpu_s", seen.job)
            if expected:
                ratios.setdefault(seen.job.kind, []).append(math.log(max(seen.cpu_s, 0.01) / expected))
        return {kind: math.exp(statistics.median(logs) * len(logs) / (len(logs) + 1)) for kind, logs in ratios.items()}

    def predict(self, job: Job) -> Cost:
        """What a job will use."""
        seconds, memory, disk = (self._quantity(name, job) for name in QUANTITIES)
        return Cost(seconds * self.factors.get(job.kind, 1.0), memory, disk)

    def known(self, job: Job) -> bool:
        """Whether jobs of this kind, and of its method, were among those that the model was fitted on."""
        kinds = self.content["cpu_s"]
        return job.kind in kinds and (not job.method or job.method in kinds[job.kind]["methods"])

    def _quantity(self, name: str, job: Job) -> float:
        kinds = self.content[name]
        kind = job.kind if job.kind in kinds else (KINDS[job.kind].costs_like if job.is_kept else "evaluations")
        if kind not in kinds:
            return 0.0
        fitted = kinds[kind]
        shared = sum(value * term for value, term in zip(fitted["shared"], terms(name, job), strict=True))
        return shared * fitted["methods"].get(job.method, fitted["unknown_method"] if job.method else 1.0)


def terms(name: str, job: Job) -> tuple[float, ...]:
    """What the coefficients that all jobs of a kind share are multiplied with."""
    if name == "disk_mb":
        return (1.0, job.work.stored)
    if name == "rss_mb":
        return (1.0, job.work.parameters)
    return (1.0, job.work.parameters, job.work.arithmetic)


def fit(observations: Sequence[Observation]) -> dict[str, Any]:
    """Coefficients of all quantities: ``{quantity: {kind: {shared, methods, unknown_method}}}``."""
    kinds = sorted({seen.job.kind for seen in observations})
    return {
        name: {kind: _fit_kind(name, [seen for seen in observations if seen.job.kind == kind]) for kind in kinds}
        for name in QUANTITIES
    }


def _fit_kind(name: str, seen: Sequence[Observation]) -> dict[str, Any]:
    import numpy as np

    used = np.array([max(getattr(each, name), 0.1) for each in seen])
    matrix = np.array([terms(name, each.job) for each in seen])
    methods = {each.job.method for each in seen} - {""}
    factors = dict.fromkeys(methods, 1.0)
    for _ in range(ROUNDS):
        shared = _shared(matrix, used / [factors.get(each.job.method, 1.0) for each in seen])
        for method in methods:
            own = [each.job.method == method for each in seen]
            # A ratio of sums: large jobs say more of a method than small ones, which are all start-up.
            factors[method] = float(used[own].sum() / max((matrix[own] @ shared).sum(), 1e-9))
    return {
        "shared": [float(f"{value:.4g}") for value in shared],
        "methods": {method: float(f"{factors[method]:.4g}") for method in sorted(methods)},
        # Of a method nobody has run yet: as dear as the dearer half of those that were.
        "unknown_method": float(f"{_upper_quartile(list(factors.values())):.4g}"),
        "jobs": len(seen),
    }


def _shared(matrix: Any, targets: Any) -> Any:
    """Non-negative coefficients of least squares of relative errors."""
    import numpy as np
    from scipy.optimize import nnls

    rows = matrix / targets[:, None]
    if rows.shape[1] > 2 and matrix[:, 2].any() and len(np.unique(matrix, axis=0)) <= rows.shape[1]:
        # Too few sorts of jobs to tell parameters from arithmetic: the model is read once and computes all along.
        rows[:, 1] = 0
    scale = np.maximum(np.abs(rows).max(0), 1e-12)
    return nnls(rows / scale, np.ones(len(rows)))[0] / scale


def _upper_quartile(values: list[float]) -> float:
    return sorted(values)[3 * (len(values) - 1) // 4] if values else 1.0
