"""How a step is started: shell lines say ``step [--direct | --gpu=N] USAGE MODULE ARGUMENTS``.

A local run has a server that imports the libraries once and forks a child for each job; elsewhere, and where anything
differs, the client runs the step itself (hemorrhage.runtime.service). USAGE, next to the log, is the job's benchmark file;
Snakemake's own ``benchmark`` would see the client alone.
"""

import os
import time
from shlex import quote

from hemorrhage.runtime.service import client, server

SERVERS = []
"""Held until Snakemake ends; the server ends with it, also after a kill -9."""


def literal(path):
    """A path as a shell word in which Snakemake finds nothing to fill in."""
    return quote(str(path)).replace("{", "{{").replace("}", "}}")


# This checkout's code runs, also in DVC's temporary experiments and in SLURM jobs.
shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={literal(SOURCE)};"
    f' step() {{{{ {literal(sys.executable)} -IS {literal(client.__file__)} "$@"; }}}}; '
)


def start_service():
    """Start the server; to be called when there is something to do. Jobs on other machines need none."""
    if workflow.local_exec:
        SERVERS.append(server.start(SOURCE, Path("logs/service.log")))


def without_rate():
    """Take Snakemake's limit of 100 jobs a second from a local run, whose cores limit it already.

    For that limit the scheduler wakes each second, and once more in it for each job that has ended: by the end of 150
    jobs it takes a tenth of a core.
    """
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None


def own_usage():
    """What Snakemake itself used in this run, next to its jobs' usage files; a file for each run."""
    usage = Path(f"logs/benchmarks/snakemake/{os.getpid()}.tsv")
    usage.parent.mkdir(parents=True, exist_ok=True)
    usage.write_text(f"cpu_time\n{time.process_time():.2f}\n")


onsuccess:
    own_usage()


onerror:
    own_usage()
