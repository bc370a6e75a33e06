"""What a run will cost, before it starts; and afterwards, how wrong that was.

    python -m hemorrhage.study.costs [--cores N] [--gpu]     of params.yaml in the working directory: what is missing
    python -m hemorrhage.study.costs fit FOLDER...           fit the coefficients on the runs that lie in these folders

``make plan`` is the first. Its prediction is corrected by what jobs took on this machine, where some ran; the
comparison with what ran is of the committed coefficients alone. ``fit`` reads each folder's params.yaml,
logs/benchmarks and data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from contextlib import chdir
from pathlib import Path

from hemorrhage.runtime.artifact import environment
from hemorrhage.study.costs import products
from hemorrhage.study.costs.jobs import PAGE, ROWS, Job, Workload
from hemorrhage.study.costs.model import COEFFICIENTS, Cost, Costs, Observation, fit, newest, observed
from hemorrhage.study.costs.requests import Requests
from hemorrhage.study.costs.schedule import critical_path, makespan
from hemorrhage.study.kinds import KINDS, Key
from hemorrhage.study.params import ConfigError
from hemorrhage.study.plan import Plan

SAFETY = {"time": 4, "memory": 1.3, "least_minutes": 10, "least_mb": 1000}
"""What rules ask for, as a multiple of what is predicted, and at least."""

EVERYTHING = (*KINDS, ROWS[0], PAGE[0])
"""What jobs make, in the order in which they can be made."""

WORTH_IT = 1.3
"""A smaller gain of the products is lost in casting."""


def show(plan: Plan, cores: int, gpu: bool) -> str:
    """The prediction for what is missing, and beside what ran the prediction for it."""
    workload = Workload(plan)
    if workload.shape is None:
        return "the model is not on this machine yet, so its size is not known: `snakemake calibrated` fetches it first"
    seen = observed(workload.jobs.values())
    costs = Costs.read(seen)
    missing = {key: job for key, job in workload.jobs.items() if not job.there}
    for key, current in ((ROWS, plan.rows_are_current()), (PAGE, plan.report_is_current())):
        if current:
            missing.pop(key, None)
    lines = _missing(missing, costs, Requests(workload, Costs.read(), int(gpu)), cores) if missing else []
    if not missing:
        lines.append("nothing is missing")
    elif plan.params.evaluate.dtype == "float32" and (faster := products.speedup()) > WORTH_IT:
        lines.append(
            f"this machine multiplies bfloat16 {faster:.1f} times as fast as float32 (measured):"
            " evaluate.dtype: bfloat16 would save time, as a protocol of its own"
        )
    if seen:
        lines += ["", *_measured(seen, Costs.read())]
    return "\n".join(lines)


def _missing(missing: dict[Key, Job], costs: Costs, resources: Requests, cores: int) -> list[str]:
    predicted = {key: costs.predict(job) for key, job in missing.items()}
    threads = {key: min(resources.threads(*key), cores) for key in missing}
    seconds = {key: predicted[key].cpu_s / threads[key] for key in missing}
    needs = {key: job.needs for key, job in missing.items()}
    lines = [f"{'to be made':14s} {'jobs':>5s} {'CPU min':>8s} {'peak MB':>8s} {'disk MB':>9s}"]
    for kind in EVERYTHING:
        of_kind = [cost for key, cost in predicted.items() if key[0] == kind]
        if of_kind:
            peak = max(cost.rss_mb for cost in of_kind)
            lines.append(
                f"{kind:14s} {len(of_kind):5d} {sum(cost.cpu_s for cost in of_kind) / 60:8.1f} {peak:8.0f}"
                f" {sum(cost.disk_mb for cost in of_kind):9.0f}"
            )
    disk = sum(cost.disk_mb for cost in predicted.values())
    peak = max(cost.rss_mb for cost in predicted.values())
    whole = sum(cost.cpu_s for cost in predicted.values()) / 60
    lines.append(f"{'all':14s} {len(missing):5d} {whole:8.1f} {peak:8.0f} {disk:9.0f}")
    path = critical_path(seconds, needs)
    chain = " > ".join(f"{kind} {name}" if kind in KINDS else kind for kind, name in path)
    lines += [
        f"on {cores} cores about {makespan(seconds, needs, threads, cores) / 60:.1f} min; on any number at least"
        f" {sum(seconds[key] for key in path) / 60:.1f} min: {chain}",
        _gpu_hours(predicted, resources),
        f"free disk: {shutil.disk_usage(Path.cwd()).free / 1e6:.0f} MB"
        + (" -- NOT ENOUGH" if disk * 1e6 > shutil.disk_usage(Path.cwd()).free else ""),
    ]
    if costs.factors:
        corrected = ", ".join(f"{kind} x{factor:.2f}" for kind, factor in costs.factors.items())
        lines.append(f"corrected by jobs that ran here: {corrected}")
    unknown = sorted({f"{job.kind} {job.method}".strip() for job in missing.values() if not costs.known(job)})
    if unknown:
        lines.append(f"never measured, taken to cost as others do: {', '.join(unknown)}")
    fitted = costs.content["fitted"]
    lines.append(f"fitted on {fitted['jobs']} jobs of models of {fitted['parameters']} parameters, {fitted['machine']}")
    return lines


def _gpu_hours(predicted: dict[Key, Cost], resources: Requests) -> str:
    jobs = [key for key in predicted if resources.workload.on_gpu(*key)]
    if not resources.gpus:
        return f"GPU hours: 0; with a GPU {len(jobs)} of these jobs use it"
    hours = sum(predicted[key].cpu_s for key in jobs) / 3600
    return f"GPU hours: {len(jobs)} jobs, at most the {hours:.2f} h a core takes for them: no run on a GPU was fitted"


def _measured(seen: list[Observation], costs: Costs) -> list[str]:
    """Kind by kind what its jobs used beside what the committed coefficients predict."""
    titles = f"{'CPU min':>8s} {'predicted':>9s} {'error':>7s} {'a job':>7s} {'start-up':>9s}"
    lines = [f"{'what ran':14s} {'jobs':>5s} {titles}"]
    groups = [(kind, [each for each in seen if each.job.kind == kind]) for kind in EVERYTHING]
    for kind, group in (*groups, ("all", seen)):
        if group:
            used, expected = sum(each.cpu_s for each in group), sum(costs.predict(each.job).cpu_s for each in group)
            errors = sorted(abs(costs.predict(each.job).cpu_s / max(each.cpu_s, 0.01) - 1) for each in group)
            start = sum(each.start_s for each in group) / max(used, 0.01)
            lines.append(
                f"{kind:14s} {len(group):5d} {used / 60:8.2f} {expected / 60:9.2f}"
                f" {expected / max(used, 0.01) - 1:+7.0%} {errors[len(errors) // 2]:7.0%} {start:9.0%}"
            )
    lines.append("error: of the sum; a job: the median over jobs of the error's size; start-up: its share of CPU time")
    return lines


def fitted_on(folders: Iterable[Path]) -> dict[str, object]:
    """Coefficients from the runs in these folders, with what they were fitted on."""
    seen: list[Observation] = []
    sizes = set()
    for folder in folders:
        with chdir(folder):
            workload = Workload(Plan.read())
            if workload.shape is None:
                raise ConfigError(f"{folder}: its model is not there")
            seen += observed(map(newest, workload.jobs.values()))
            sizes.add(f"{workload.shape.parameters:,}")
    if not seen:
        raise ConfigError("no job of the plans in these folders has a usage file and an output")
    facts = {
        "jobs": len(seen),
        "parameters": " and ".join(sorted(sizes, key=lambda size: int(size.replace(",", "")))),
        "machine": f"{environment()['machine']}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": environment()["torch"],
        "command": "python -m hemorrhage.study.costs fit FOLDER...",
    }
    return {"fitted": facts, "safety": SAFETY, **fit(seen)}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.study.costs", description="what a run will cost")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="cores that the run may use")
    parser.add_argument("--gpu", action="store_true", help="jobs that run the model use a GPU")
    commands = parser.add_subparsers(dest="command")
    fitting = commands.add_parser("fit", help="fit the coefficients on the runs that lie in folders")
    fitting.add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    try:
        if arguments.command == "fit":
            content = fitted_on([folder.resolve() for folder in arguments.folders])
            COEFFICIENTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            print(f"{COEFFICIENTS}: {content['fitted']}")
        else:
            print(show(Plan.read(), arguments.cores, arguments.gpu))
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
