"""Cost of a job before its work begins: N evaluations of a small model, directly and through the service.

python -m benchmarks.startup --model DIR [--jobs 5]
python -m benchmarks.startup --run DIR

Makes a base, a text, a probe task and a reference from the model in DIR; then evaluates it --jobs times each way, in
one run. Prints CPU seconds per job, of everything: for the service the client, the watching process, the child, and
its share of importing the libraries once; and how long a job takes with all of it (wall-clock).

With --run, of a run that lies in DIR: the share of its CPU time that went into starting, from the usage files of its
jobs (``start_up``: before the step began and within its imports), the server's imports, and Snakemake itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

import hemorrhage
from hemorrhage.runtime.artifact import write_manifest
from hemorrhage.runtime.service import client, server

SOURCE = Path(hemorrhage.__file__).parent.parent


def spent() -> float:
    """CPU seconds of all descendants that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def step(*words: str | Path) -> None:
    """Run one step through the client: served where a server is there."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **dict.fromkeys(server.THREADS, "1")}
    done = subprocess.run(
        [sys.executable, "-IS", client.__file__, "usage.tsv", *map(str, words)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)


def prepare(model: Path) -> list[str | Path]:
    """Everything that an evaluation of the model reads, in the working directory; returns its words."""
    base, text, task, reference = (Path(kind, "x").absolute() for kind in ("base", "texts", "tasks", "references"))
    step("hemorrhage.models", base, "--spec", json.dumps({"source": "path", "path": str(model)}))
    step("hemorrhage.data.tasks.probes", task, "--task", "agreement", "--items", "8", "--seed", "0")
    text.mkdir(parents=True)
    tokens = torch.randint(3, 500, (2000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    save_file({"evaluation": tokens}, text / "tokens.safetensors")
    write_manifest(text, corpus="prose", sha256="0", join="\n\n")
    spec = json.dumps({"dtype": "float32", "window": 32, "windows": 4, "diagnostics": {"windows": 3, "window": 24}})
    step("hemorrhage.evaluate.reference", reference, "--base", base, "--texts", text, "--tasks", task, "--spec", spec)
    return [
        "--variant", "base", "--checkpoint", base, "--base", base, "--reference", reference, "--tasks", task,
        "--spec", json.dumps({"ablate": False}),
    ]  # fmt: skip


def rows(files: Iterable[Path]) -> Iterator[dict[str, float]]:
    """Read the rows of usage files."""
    for file in files:
        header, *lines = file.read_text(encoding="utf-8").splitlines()
        yield from (dict(zip(header.split("\t"), map(float, line.split("\t")), strict=True)) for line in lines)


def share(run: Path) -> None:
    """Print what a run's fixed cost was, step by step and in total."""
    total = fixed = 0.0
    for folder in sorted((run / "logs/benchmarks").iterdir()):
        found = list(rows(folder.glob("*.tsv")))
        used = sum(row["cpu_time"] for row in found)
        # Snakemake computes nothing that anybody asked for.
        start = used if folder.name == "snakemake" else sum(row["start_up"] for row in found)
        total, fixed = total + used, fixed + start
        print(f"{folder.name:14s} {len(found):4d} {used:9.1f} CPU s, {start:7.1f} s of it fixed ({start / used:.0%})")
    log = run / "logs/service.log"
    once = float(log.read_text(encoding="utf-8").split()[3]) if log.is_file() else 0.0
    total, fixed = total + once, fixed + once
    print(f"{'the server':14s}      {once:9.1f} CPU s")
    print(f"{'all':14s}      {total:9.1f} CPU s, {fixed:7.1f} s of it fixed: {fixed / total:.1%}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of a small model")
    parser.add_argument("--run", type=Path, help="folder of a run: its share instead")
    parser.add_argument("--jobs", type=int, default=5, help="evaluations each way")
    chosen = parser.parse_args()
    if chosen.run:
        share(chosen.run)
        return
    if not chosen.model:
        parser.error("--model or --run is needed")
    model, jobs = chosen.model.absolute(), chosen.jobs
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with server.start(SOURCE, Path("service.log")) as service:
            words = prepare(model)
            service.stdin.close()  # type: ignore[union-attr]
        for name in ("direct", "served"):
            before, begun = spent(), time.monotonic()
            if name == "served":
                with server.start(SOURCE, Path("service.log")) as service:
                    # The first job waits for the server, so that the seconds of the others are theirs alone.
                    step("hemorrhage.data.tasks.probes", Path("warm"), "--task", "cloze", "--items", "4", "--seed", "0")
                    begun = time.monotonic()
                    for number in range(jobs):
                        step("hemorrhage.evaluate", Path(name, str(number)), *words)
                    seconds = (time.monotonic() - begun) / jobs
                    service.stdin.close()  # type: ignore[union-attr]
                once = float(Path("service.log").read_text().split()[3])
                each = (spent() - before - once) / jobs
                print(f"served  {each:6.2f} CPU s a job, {seconds:6.2f} s;  once {once:.1f} CPU s for the libraries")
            else:
                for number in range(jobs):
                    step("hemorrhage.evaluate", Path(name, str(number)), *words)
                each = (spent() - before) / jobs
                print(f"direct  {each:6.2f} CPU s a job, {(time.monotonic() - begun) / jobs:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
