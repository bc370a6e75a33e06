"""Costs of a run, predicted and compared with what it used: ``hemorrhage costs``, ``make plan``.

The prediction is corrected by what jobs took on this machine, where some ran; the comparison with what ran is of the
committed coefficients alone. ``hemorrhage costs fit`` reads each folder's params.yaml, logs/benchmarks and data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypedDict

from hemorrhage.analyze.budget import CONFIRMED, DAMAGE_KINDS, least_items
from hemorrhage.models.memory import Memory, phases
from hemorrhage.runtime.artifact import environment
from hemorrhage.runtime.command import CANNOT_TELL, YES, CommandError, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study.costs import products
from hemorrhage.study.costs.jobs import PAGE, ROWS, Workload, sizes
from hemorrhage.study.costs.model import (
    COEFFICIENTS,
    Coefficients,
    Cost,
    Costs,
    FittedOn,
    Observation,
    Safety,
    fit,
    newest,
    observe,
    read_coefficients,
)
from hemorrhage.study.costs.requests import Requests
from hemorrhage.study.costs.schedule import critical_path, makespan
from hemorrhage.study.family import Family
from hemorrhage.study.kinds import KINDS, Key
from hemorrhage.study.params import Params
from hemorrhage.study.plan import Plan

SAFETY: Safety = {"time": 4, "memory": 1.3, "least_minutes": 10, "least_mb": 1000}
"""Requests of rules, as a multiple of what is predicted, and at least."""

EVERYTHING = (*KINDS, ROWS[0], PAGE[0])
"""Everything that jobs make, in the order in which they can."""

WORTH_IT = 1.3
"""A smaller gain of the products is lost in casting."""


@dataclass(frozen=True)
class Total:
    """The cost of jobs together: CPU minutes, the largest job's memory, disk."""

    jobs: int
    cpu_minutes: float
    peak_mb: float
    disk_mb: float


@dataclass(frozen=True)
class Forecast:
    """The predicted cost of the missing jobs.

    ``path``: the chain of jobs that takes longest; ``gpu_hours``: at most, None without a GPU; ``factors``: correction
    of a kind by jobs that ran here; ``unknown``: kinds and methods that no fitted run had.
    """

    kinds: dict[str, Total]
    total: Total
    cores: int
    minutes: float
    least_minutes: float
    path: list[Key]
    gpu_jobs: int
    gpu_hours: float | None
    free_disk_mb: float
    machine_mb: float
    factors: dict[str, float]
    unknown: list[str]
    fitted: FittedOn
    bfloat16_speedup: float | None


@dataclass(frozen=True)
class Comparison:
    """Usage of a kind's jobs next to the prediction; ``job_error`` is the median over jobs of the error's size."""

    jobs: int
    cpu_minutes: float
    predicted_minutes: float
    error: float
    job_error: float
    start_up: float


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "costs",
        "Predict CPU minutes, peak memory, disk and GPU hours of what params.yaml asks for and is missing, and\n"
        "compare what ran with its prediction. `hemorrhage costs fit FOLDER...` fits the cost model on runs of yours.",
        ["hemorrhage costs --cores 8", "hemorrhage costs --json", "hemorrhage costs fit . ../another-study"],
        {CANNOT_TELL: "the model is not on this machine yet, so its size is not known"},
    )
    made.add_argument("--cores", type=_cores, default=os.cpu_count(), metavar="N", help="cores that the run may use")
    made.add_argument("--gpu", action="store_true", help="jobs that run the model use a GPU")
    made.add_argument(
        "--batch", type=_number, default=1, metavar="N", help="texts at once, for the memory of the model"
    )
    made.add_argument("--context", type=_number, default=2048, metavar="N", help="their tokens (default: %(default)s)")
    made.add_argument("--json", action="store_true", help="the numbers as JSON")
    commands = made.add_subparsers(dest="command", metavar="fit")
    fitting = commands.add_parser("fit", help="fit the coefficients on the runs in folders")
    fitting.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    return made


def _cores(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of cores")
    return int(text)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the prediction, or fit it."""
    arguments = parser().parse_args(argv)
    if arguments.command == "fit":
        content = fit_folders([folder.resolve() for folder in arguments.folders])
        COEFFICIENTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"{COEFFICIENTS}: {content['fitted']}")
        return YES
    family = Family.read()
    if not family.is_one:
        forecasts = of_several(family, arguments.cores, arguments.gpu)
        text = json_text({name: asdict(each) if each else None for name, each in forecasts.items()})
        print(text if arguments.json else "\n".join(_lines_of_several(forecasts, arguments.cores)))
        return YES
    plan = family.plans[""]
    if arguments.json:
        print(json_text(as_json(plan, arguments.cores, arguments.gpu, arguments.batch, arguments.context)))
    else:
        print(show(plan, arguments.cores, arguments.gpu, arguments.batch, arguments.context))
    return YES


def of_several(family: Family, cores: int, gpu: bool) -> dict[str, Forecast | None]:
    """Predict what is missing of each model; what several share counts for the first. Raises CommandError."""
    counted: set[Path] = set()
    forecasts = {}
    for name, plan in family.plans.items():
        workload = _workload(plan)
        forecasts[name] = forecast(workload, observe(workload.jobs.values()), cores, gpu, counted)
        counted |= {job.output for job in workload.jobs.values()}
    return forecasts


def _lines_of_several(forecasts: Mapping[str, Forecast | None], cores: int) -> list[str]:
    known = {name: each for name, each in forecasts.items() if each is not None}
    if not known:
        return ["nothing is missing"]
    total = Total(
        jobs=sum(each.total.jobs for each in known.values()),
        cpu_minutes=sum(each.total.cpu_minutes for each in known.values()),
        peak_mb=max(each.total.peak_mb for each in known.values()),
        disk_mb=sum(each.total.disk_mb for each in known.values()),
    )
    lines = [f"{'to be made':24s} {'jobs':>5s} {'CPU min':>8s} {'peak MB':>8s} {'disk MB':>9s}"]
    lines += [
        f"{name:24s} {each.jobs:5d} {each.cpu_minutes:8.1f} {each.peak_mb:8.0f} {each.disk_mb:9.0f}"
        for name, each in {**{name: each.total for name, each in known.items()}, "all": total}.items()
    ]
    least = max(each.least_minutes for each in known.values())
    free = min(each.free_disk_mb for each in known.values())
    lines.append(
        f"on {cores} cores about {max(total.cpu_minutes / cores, least):.1f} min; on any number {least:.1f} min"
    )
    machine = min(each.machine_mb for each in known.values())
    return [
        *lines,
        f"free disk: {free:.0f} MB{' -- NOT ENOUGH' if total.disk_mb > free else ''}",
        _machine_line(machine, {name: each.total for name, each in known.items()}),
    ]


def show(plan: Plan, cores: int, gpu: bool, batch: int = 1, context: int = 2048) -> str:
    """Write the prediction for what is missing, and next to what ran the prediction for it. Raises CommandError."""
    workload = _workload(plan)
    seen = observe(workload.jobs.values())
    predicted = forecast(workload, seen, cores, gpu)
    lines = _forecast_lines(predicted) if predicted else ["nothing is missing"]
    if plan.is_open:
        allowance = plan.params.screen.allowance
        lines.append(f"not counted: at most {allowance} variants that the screening adds, and what is confirmed")
    lines += power_lines(plan.params)
    lines += memory_lines(plan, batch, context)
    if seen:
        lines += ["", *_comparison_lines(compare(seen, Costs.read()))]
    return "\n".join(lines)


def power_lines(params: Params) -> list[str]:
    """Say for each limit on items whether a confirmation has enough, where there is one."""
    items = params.screen.confirm.items * len(params.evaluate.tasks)
    budget, level = params.analyze.budget.model_dump(exclude_none=True), 1 - params.analyze.confidence
    lines = []
    for kind, limit in budget.items() if items else ():
        needed = least_items(kind, limit, level) if DAMAGE_KINDS[kind].unit == "items" else None
        if needed is not None:
            verdict = "enough" if items >= needed else "TOO FEW"
            lines.append(
                f"confirmation: {items:,} items, {verdict} for {kind}: a variant at 1/{CONFIRMED:g} of the limit takes "
                f"at least {needed:,} to be called inside in four of five cases"
            )
    return lines


class Report(TypedDict):
    """The content of ``--json``: ``missing`` is null where nothing is, ``memory`` where no formula is known."""

    missing: dict[str, object] | None
    ran: dict[str, dict[str, float]]
    memory: dict[str, dict[str, int]] | None


def as_json(plan: Plan, cores: int, gpu: bool, batch: int = 1, context: int = 2048) -> Report:
    """Return the same as plain content. Raises CommandError."""
    workload = _workload(plan)
    seen = observe(workload.jobs.values())
    predicted = forecast(workload, seen, cores, gpu)
    ran = {kind: asdict(comparison) for kind, comparison in compare(seen, Costs.read()).items()}
    taken = {phase: asdict(each) for phase, each in model_memory(plan, batch, context).items()}
    return {"missing": asdict(predicted) if predicted else None, "ran": ran, "memory": taken or None}


def model_memory(plan: Plan, batch: int, context: int) -> dict[str, Memory]:
    """Return what the base takes by phase, in 16 bits where it reads and decodes; nothing without a formula for it."""
    known = sizes(plan)
    return {} if known is None else phases(known, batch, context)


def memory_lines(plan: Plan, batch: int, context: int) -> list[str]:
    """Say what the base takes while it reads, decodes and trains."""
    taken = model_memory(plan, batch, context)
    if not taken:
        return ["memory of the base at work: no formula for its family"]
    titles = "".join(f"{title:>13s}" for title in ("parameters", "cache", "activations", "gradients", "optimizer"))
    lines = [f"{'MB of the base':14s}{titles}{'peak':>10s}   {batch} x {context} tokens"]
    for phase, each in taken.items():
        parts = (each.parameters, each.cache, each.activations, each.gradients, each.optimizer)
        lines.append(f"{phase:14s}" + "".join(f"{1e-6 * part:13,.0f}" for part in parts) + f"{1e-6 * each.peak:10,.0f}")
    return lines


def _workload(plan: Plan) -> Workload:
    workload = Workload(plan)
    if workload.shape is None:
        reason = "the model is not on this machine yet, so its size is not known"
        raise CommandError(f"{reason}: `snakemake calibrated` fetches it first", CANNOT_TELL)
    return workload


def forecast(
    workload: Workload, seen: Sequence[Observation], cores: int, gpu: bool, counted: Collection[Path] = ()
) -> Forecast | None:
    """Predict what the missing jobs cost; None where none is missing. Outputs that were ``counted`` cost nothing."""
    plan, costs, requests = workload.plan, Costs.read(seen), Requests(workload, Costs.read(), int(gpu))
    missing = {key: job for key, job in workload.jobs.items() if not job.is_done and job.output not in counted}
    for key, current in ((ROWS, plan.rows_are_current()), (PAGE, plan.report_is_current())):
        if current:
            missing.pop(key, None)
    if not missing:
        return None
    # The memory is the one that rules ask for.
    predicted = {key: replace(costs.predict(job), rss_mb=requests.memory(*key)) for key, job in missing.items()}
    threads = {key: min(requests.threads(*key), cores) for key in missing}
    seconds = {key: predicted[key].cpu_s / threads[key] for key in missing}
    needs = {key: job.needs for key, job in missing.items()}
    path = critical_path(seconds, needs)
    on_gpu = [key for key in predicted if workload.on_gpu(*key)]
    kinds = {kind: [cost for key, cost in predicted.items() if key[0] == kind] for kind in EVERYTHING}
    return Forecast(
        kinds={kind: _total(of_kind) for kind, of_kind in kinds.items() if of_kind},
        total=_total(list(predicted.values())),
        cores=cores,
        minutes=makespan(seconds, needs, threads, cores) / 60,
        least_minutes=sum(seconds[key] for key in path) / 60,
        path=path,
        gpu_jobs=len(on_gpu),
        gpu_hours=sum(predicted[key].cpu_s for key in on_gpu) / 3600 if requests.gpus else None,
        free_disk_mb=shutil.disk_usage(Path.cwd()).free / 1e6,
        machine_mb=1e-6 * machine_memory(),
        factors=costs.factors,
        unknown=sorted({f"{job.kind} {job.method}".strip() for job in missing.values() if not costs.is_fitted(job)}),
        fitted=read_coefficients()["fitted"],
        bfloat16_speedup=products.speedup() if plan.params.evaluate.dtype == "float32" else None,
    )


def _total(costs: Sequence[Cost]) -> Total:
    return Total(
        jobs=len(costs),
        cpu_minutes=sum(cost.cpu_s for cost in costs) / 60,
        peak_mb=max(cost.rss_mb for cost in costs),
        disk_mb=sum(cost.disk_mb for cost in costs),
    )


def _forecast_lines(forecast: Forecast) -> list[str]:
    lines = [f"{'to be made':14s} {'jobs':>5s} {'CPU min':>8s} {'peak MB':>8s} {'disk MB':>9s}"]
    lines += [
        f"{kind:14s} {total.jobs:5d} {total.cpu_minutes:8.1f} {total.peak_mb:8.0f} {total.disk_mb:9.0f}"
        for kind, total in {**forecast.kinds, "all": forecast.total}.items()
    ]
    chain = " > ".join(f"{kind} {name}" if kind in KINDS else kind for kind, name in forecast.path)
    lines += [
        f"on {forecast.cores} cores about {forecast.minutes:.1f} min; on any number at least"
        f" {forecast.least_minutes:.1f} min: {chain}",
        _gpu_line(forecast),
        f"free disk: {forecast.free_disk_mb:.0f} MB"
        + (" -- NOT ENOUGH" if forecast.total.disk_mb > forecast.free_disk_mb else ""),
        _machine_line(forecast.machine_mb, forecast.kinds),
    ]
    if forecast.factors:
        corrected = ", ".join(f"{kind} x{factor:.2f}" for kind, factor in forecast.factors.items())
        lines.append(f"corrected by jobs that ran here: {corrected}")
    if forecast.unknown:
        lines.append(f"never measured, taken to cost as others do: {', '.join(forecast.unknown)}")
    fitted = forecast.fitted
    lines.append(f"fitted on {fitted['jobs']} jobs of models of {fitted['parameters']} parameters, {fitted['machine']}")
    if forecast.bfloat16_speedup is not None and forecast.bfloat16_speedup > WORTH_IT:
        lines.append(
            f"this machine multiplies bfloat16 {forecast.bfloat16_speedup:.1f} times as fast as float32 (measured):"
            " evaluate.dtype: bfloat16 would save time, as a protocol of its own"
        )
    return lines


def machine_memory() -> int:
    """Return the bytes of memory that this machine has, or its control group may take."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return min(physical, int(allowed)) if allowed.isdecimal() else physical


def _machine_line(machine_mb: float, totals: Mapping[str, Total]) -> str:
    """Say which of ``totals`` have a job that takes more memory than the machine has."""
    large = {name: total.peak_mb for name, total in totals.items() if total.peak_mb > machine_mb}
    if not large:
        return f"memory: {machine_mb:.0f} MB"
    needed = ", ".join(f"{name} ({peak:.0f} MB)" for name, peak in large.items())
    return f"memory: {machine_mb:.0f} MB -- NOT ENOUGH for {needed}"


def _gpu_line(forecast: Forecast) -> str:
    if forecast.gpu_hours is None:
        return f"GPU hours: 0; with a GPU {forecast.gpu_jobs} of these jobs use it"
    most = f"at most the {forecast.gpu_hours:.2f} h a core takes for them"
    return f"GPU hours: {forecast.gpu_jobs} jobs, {most}: no run on a GPU was fitted"


def compare(seen: Sequence[Observation], costs: Costs) -> dict[str, Comparison]:
    """Compare, kind by kind and for all together, what jobs used with what ``costs`` predicts."""
    groups = [(kind, [each for each in seen if each.job.kind == kind]) for kind in EVERYTHING]
    return {kind: _comparison(group, costs) for kind, group in (*groups, ("all", seen)) if group}


def _comparison(group: Sequence[Observation], costs: Costs) -> Comparison:
    used, expected = sum(each.cpu_s for each in group), sum(costs.predict(each.job).cpu_s for each in group)
    errors = sorted(abs(costs.predict(each.job).cpu_s / max(each.cpu_s, 0.01) - 1) for each in group)
    return Comparison(
        jobs=len(group),
        cpu_minutes=used / 60,
        predicted_minutes=expected / 60,
        error=expected / max(used, 0.01) - 1,
        job_error=errors[len(errors) // 2],
        start_up=sum(each.start_s for each in group) / max(used, 0.01),
    )


def _comparison_lines(comparisons: dict[str, Comparison]) -> list[str]:
    titles = f"{'CPU min':>8s} {'predicted':>9s} {'error':>7s} {'a job':>7s} {'start-up':>9s}"
    lines = [f"{'what ran':14s} {'jobs':>5s} {titles}"]
    lines += [
        f"{kind:14s} {each.jobs:5d} {each.cpu_minutes:8.2f} {each.predicted_minutes:9.2f}"
        f" {each.error:+7.0%} {each.job_error:7.0%} {each.start_up:9.0%}"
        for kind, each in comparisons.items()
    ]
    return [
        *lines,
        "error: of the sum; a job: the median over jobs of the error's size; start-up: its share of CPU time",
    ]


def fit_folders(folders: Iterable[Path]) -> Coefficients:
    """Fit coefficients on the runs in these folders, and say what they were fitted on."""
    seen: list[Observation] = []
    sizes = set()
    for folder in folders:
        if not folder.is_dir():
            raise CommandError(f"{folder} is not a folder")
        with chdir(folder):
            workload = Workload(Plan.read())
            if workload.shape is None:
                raise CommandError(f"{folder}: its model is not on this machine")
            seen += observe(map(newest, workload.jobs.values()))
            sizes.add(f"{workload.shape.parameters:,}")
    if not seen:
        raise CommandError("no job of the plans in these folders has a usage file and an output")
    basis: FittedOn = {
        "jobs": len(seen),
        "parameters": " and ".join(sorted(sizes, key=lambda size: int(size.replace(",", "")))),
        "machine": f"{environment()['machine']}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": environment()["torch"],
        "command": "hemorrhage costs fit FOLDER...",
    }
    return {"fitted": basis, "safety": SAFETY, **fit(seen)}
