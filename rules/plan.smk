"""The plan of params.yaml: what exists, where it lies, what a rule needs.

What an address names never changes, so every input is ancient(): its absence matters, not its age.
"""

import json
import os
import sys
from pathlib import Path

SOURCE = Path(workflow.basedir, "src")
sys.path.insert(0, str(SOURCE))

from hemorrhage.study.params import ConfigError
from hemorrhage.study.costs.model import Costs
from hemorrhage.study.costs.requests import Requests
from hemorrhage.study.costs.work import Workload
from hemorrhage.runtime.lock import hold
from hemorrhage.study.plan import Plan, failed
from hemorrhage.tools import adopt

# What a killed adoption left at addresses that it had not proven.
adopt.take_back()

try:
    plan = Plan.read()
except ConfigError as error:
    sys.exit(str(error))

# A profile says whether jobs that run the model get a GPU: the machine that plans may have none.
asked = Requests(Workload(plan), Costs.read(), int(config.get("gpu", 0)))


resource_scopes:
    gpu="local",


wildcard_constraints:
    name=r"[a-z0-9_.-]+",
    key=r"[0-9a-f]{12}",


def of(kind):
    """Input function: the output of a kind that has the wildcard's name."""
    return lambda wildcards: ancient(plan.manifest(kind, wildcards.name))


def statistics(wildcards):
    """The calibration, for methods that read it."""
    needed = plan.needs_calibration(wildcards.name)
    return ancient(plan.manifests("calibrations")) if needed else []


def gradients(wildcards):
    """The gradients, for methods that read them."""
    parts = plan.gradients_of(wildcards.name)
    return [ancient(plan.manifest("gradients", part)) for part in parts]


def earlier(wildcards):
    """What a variant on another variant comes after: that one first."""
    after = plan.variants[wildcards.name].after
    return [ancient(plan.manifest("checkpoints", name)) for name in after]


def threads_of(kind):
    """Threads of a kind's job, from the cost model."""
    return lambda wildcards: asked.threads(kind, wildcards.name)


def memory_of(kind):
    """Memory of a kind's job in MB, more for each attempt."""
    return lambda wildcards, attempt: asked.mem_mb(kind, wildcards.name, attempt)


def minutes_of(kind):
    """Time of a kind's job, more for each attempt."""
    return lambda wildcards, attempt: asked.minutes(kind, wildcards.name, attempt)


def folders(manifests):
    """The directories of one or several manifests, as shell words."""
    paths = [manifests] if isinstance(manifests, str) else manifests
    return " ".join(str(Path(path).parent) for path in paths)


onstart:
    # Snakemake's own lock survives a kill -9; these go with the process.
    try:
        if adopt.ADOPTING not in os.environ:
            hold(adopt.LOCK)
        hold(adopt.RUN)
    except BlockingIOError:
        raise WorkflowError(
            "another run is at work in this folder; wait for it to end, or stop it"
        )
    start_service()
