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
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

from hemorrhage.runtime.address import ADDRESS_LENGTH
from hemorrhage.study.costs.jobs import Job
from hemorrhage.study.kinds import KINDS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float64]

COEFFICIENTS = Path(__file__).with_name("coefficients.json")

Quantity = Literal["cpu_s", "rss_mb", "disk_mb"]
QUANTITIES: tuple[Quantity, ...] = ("cpu_s", "rss_mb", "disk_mb")

ROUNDS = 20
"""Alternations of fitting the shared coefficients and the methods' factors."""


class KindCoefficients(TypedDict):
    """Coefficients of a kind: factors of its terms, of each method, and of a method that nobody has run yet."""

    shared: list[float]
    methods: dict[str, float]
    unknown_method: float
    jobs: int


class Quantities(TypedDict):
    """Quantity -> kind -> its coefficients."""

    cpu_s: dict[str, KindCoefficients]
    rss_mb: dict[str, KindCoefficients]
    disk_mb: dict[str, KindCoefficients]


class FittedOn(TypedDict):
    """The jobs, models and machine that coefficients were fitted on, and how to do it again."""

    jobs: int
    parameters: str
    machine: str
    python: str
    torch: str
    command: str


class Safety(TypedDict):
    """Requests of rules, as a multiple of what is predicted, and at least."""

    time: float
    memory: float
    least_minutes: float
    least_mb: float


class Coefficients(Quantities):
    """The content of ``coefficients.json``."""

    fitted: FittedOn
    safety: Safety


def read_coefficients() -> Coefficients:
    """Read the committed coefficients."""
    coefficients: Coefficients = json.loads(COEFFICIENTS.read_text(encoding="utf-8"))
    return coefficients


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


def observe(jobs: Iterable[Job]) -> list[Observation]:
    """Read the usage of the jobs among these that have a usage file and an output that is no failure."""
    observations = []
    for job in jobs:
        if job.usage.is_file() and (job.is_done or not job.is_kept):
            header, row = (line.split("\t") for line in job.usage.read_text(encoding="utf-8").splitlines()[:2])
            used = dict(zip(header, map(float, row), strict=True))
            disk = 0.0
            if job.is_kept:
                if "failure" in json.loads(job.output.read_text(encoding="utf-8")):
                    continue
                disk = 1e-6 * sum(file.stat().st_size for file in job.output.parent.rglob("*") if file.is_file())
            memory = used["max_rss"] * 1.048576
            observations.append(Observation(job, used["cpu_time"], used.get("start_up", 0.0), memory, disk))
    return observations


def newest(job: Job) -> Job:
    """Return the job with the usage file and output of its latest run, at whatever address: code may have changed."""
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

    def __init__(self, quantities: Quantities, local: Sequence[Observation] = ()) -> None:
        self.quantities = quantities
        self.factors = self._factors(local)

    @classmethod
    def read(cls, local: Sequence[Observation] = ()) -> Costs:
        """Make the model of the committed coefficients."""
        return cls(read_coefficients(), local)

    def _factors(self, local: Sequence[Observation]) -> dict[str, float]:
        """Return how slow this machine is by kind: the median over its jobs, shrunk to 1 for few."""
        ratios: dict[str, list[float]] = {}
        for seen in local:
            expected = self._quantity("cpu_s", seen.job)
            if expected:
                ratios.setdefault(seen.job.kind, []).append(math.log(max(seen.cpu_s, 0.01) / expected))
        return {kind: math.exp(statistics.median(logs) * len(logs) / (len(logs) + 1)) for kind, logs in ratios.items()}

    def predict(self, job: Job) -> Cost:
        """Predict what a job will use."""
        seconds, memory, disk = (self._quantity(name, job) for name in QUANTITIES)
        return Cost(seconds * self.factors.get(job.kind, 1.0), memory, disk)

    def started(self, kind: str) -> float:
        """Return the memory in MB that a job of a kind takes without a model."""
        kinds = self.quantities["rss_mb"]
        fitted = kinds.get(kind) or kinds.get(KINDS[kind].costs_like)
        return fitted["shared"][0] if fitted else 0.0

    def is_fitted(self, job: Job) -> bool:
        """Tell whether jobs of this kind, and of its method, were among those that the model was fitted on."""
        kinds = self.quantities["cpu_s"]
        return job.kind in kinds and (not job.method or job.method in kinds[job.kind]["methods"])

    def _quantity(self, name: Quantity, job: Job) -> float:
        kinds = self.quantities[name]
        kind = job.kind if job.kind in kinds else (KINDS[job.kind].costs_like if job.is_kept else "evaluations")
        if kind not in kinds:
            return 0.0
        fitted = kinds[kind]
        shared = sum(value * term for value, term in zip(fitted["shared"], terms(name, job), strict=True))
        return shared * fitted["methods"].get(job.method, fitted["unknown_method"] if job.method else 1.0)


def terms(name: Quantity, job: Job) -> tuple[float, ...]:
    """Return what the coefficients that all jobs of a kind share are multiplied with."""
    if name == "disk_mb":
        return (1.0, job.work.stored)
    if name == "rss_mb":
        return (1.0, job.work.parameters)
    return (1.0, job.work.parameters, job.work.arithmetic)


def fit(observations: Sequence[Observation]) -> Quantities:
    """Fit the coefficients of all quantities."""
    kinds = sorted({seen.job.kind for seen in observations})
    of_kind = {kind: [seen for seen in observations if seen.job.kind == kind] for kind in kinds}
    return {
        "cpu_s": {kind: _fit_kind("cpu_s", seen) for kind, seen in of_kind.items()},
        "rss_mb": {kind: _fit_kind("rss_mb", seen) for kind, seen in of_kind.items()},
        "disk_mb": {kind: _fit_kind("disk_mb", seen) for kind, seen in of_kind.items()},
    }


def _fit_kind(name: Quantity, seen: Sequence[Observation]) -> KindCoefficients:
    import numpy as np

    used = np.array([max(getattr(each, name), 0.1) for each in seen])
    matrix = np.array([terms(name, each.job) for each in seen])
    methods = {each.job.method for each in seen} - {""}
    factors = dict.fromkeys(methods, 1.0)
    for _ in range(ROUNDS):
        shared = _shared(matrix, used / [factors.get(each.job.method, 1.0) for each in seen])
        for method in methods:
            of_method = [each.job.method == method for each in seen]
            # A ratio of sums: large jobs say more of a method than small ones, which are all start-up.
            factors[method] = float(used[of_method].sum() / max((matrix[of_method] @ shared).sum(), 1e-9))
    return {
        "shared": [float(f"{value:.4g}") for value in shared],
        "methods": {method: float(f"{factors[method]:.4g}") for method in sorted(methods)},
        # Of a method nobody has run yet: the upper quartile of those that were.
        "unknown_method": float(f"{_upper_quartile(list(factors.values())):.4g}"),
        "jobs": len(seen),
    }


def _shared(matrix: Floats, targets: Floats) -> Floats:
    """Solve for the non-negative coefficients of least squares of relative errors."""
    import numpy as np
    from scipy.optimize import nnls

    rows = matrix / targets[:, None]
    if rows.shape[1] > 2 and matrix[:, 2].any() and len(np.unique(matrix, axis=0)) <= rows.shape[1]:
        # Too few sorts of jobs to tell parameters from arithmetic: the model is read once and computes all along.
        rows[:, 1] = 0
    scale = np.maximum(np.abs(rows).max(0), 1e-12)
    solution: Floats = nnls(rows / scale, np.ones(len(rows)))[0] / scale
    return solution


def _upper_quartile(values: list[float]) -> float:
    return sorted(values)[3 * (len(values) - 1) // 4] if values else 1.0
