"""The plan of params.yaml: what exists, where it lies, what a rule needs.

What an address names never changes, so every input is ancient(): its absence matters, not its age.
"""

import os
import sys
from pathlib import Path

SOURCE = Path(workflow.basedir, "src")
sys.path.insert(0, str(SOURCE))

from hemorrhage.study.params import ConfigError
from hemorrhage.study.costs.model import Costs
from hemorrhage.study.costs.requests import Requests
from hemorrhage.study.costs.jobs import PAGE, ROWS, Workload
from hemorrhage.runtime.lock import hold
from hemorrhage.runtime.marks import remove_marks
from hemorrhage.study.kinds import BRACKET, KINDS, STAGES, analyzed_kinds, stage_kinds
from hemorrhage.study.overlaps import overlap_warnings
from hemorrhage.study.plan import Plan, list_failures
from hemorrhage.tools import adopt

# What a killed adoption left at addresses that it had not proven, and what a killed run left of outputs that are whole.
adopt.take_back()
remove_marks(Path())

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


RULES = [
    (kind, name, on_gpu)
    for kind in KINDS.values()
    if not kind.extends_plan
    for name, on_gpu in (
        [(kind.rule, False), (kind.rule_on_gpu, True)]
        if kind.rule_on_gpu
        else [(kind.rule, kind.on_gpu is not None)]
    )
]
"""Kind, the name of a rule that makes it, and whether that rule asks for a GPU where the profile has one."""

FOLDERS = {"benchmarks": "benchmarks_data"}
"""Kind -> its folder of logs, where that is another: logs/benchmarks are all jobs' usage files."""


def named(kind, on_gpu):
    """Regular expression of the names that a rule makes."""
    every = r"[a-z0-9_.-]+"
    return asked.names_pattern(kind.name, on_gpu) if kind.rule_on_gpu else every


def inputs_of(kind):
    """Input function: what an output of the kind is made from."""
    return lambda wildcards: {
        option: [ancient(manifest) for manifest in manifests]
        for option, manifests in plan.inputs(kind.name, wildcards.name).items()
    }


def extended_plan():
    """The plan with what the bracket adds. Until that is made, Snakemake makes it first and asks again."""
    global plan
    if plan.is_open:
        kind, name = BRACKET
        checkpoints.bracket.get(name=name, key=plan.address(kind, name))
    if plan.design is plan.named:
        plan = Plan(plan.params)
    return plan


def added_outputs(of):
    """Input function: what a screening adds to some kinds. Others are asked for without waiting for it."""

    def added(wildcards):
        if not any(plan.possible_names(kind.name) != named[kind.name] for kind in of):
            return []
        names = extended_plan().names
        return [
            ancient(plan.manifest(kind.name, name))
            for kind in of
            for name in names(kind.name)
            if name not in named[kind.name]
        ]

    named = {
        kind.name: {
            name: plan.address(kind.name, name) for name in kind.names(plan.named)
        }
        for kind in of
    }
    return added


def analyzed_outputs(wildcards):
    """Input function: what the analysis reads of params.yaml."""
    return {kind.name: ancient(plan.manifests(kind.name)) for kind in analyzed_kinds()}


def start_of(kind):
    """How a kind's step is started: see rules/service.smk."""
    served = kind.on_gpu is not None
    return lambda wildcards, resources: (
        f"--gpu={resources.gpu}" if served else "--direct"
    )


def command_of(kind):
    """The module and the arguments of a kind's job."""
    return lambda wildcards: plan.command(kind.name, wildcards.name)


def threads_of(kind):
    """Threads of a kind's job, from the cost model."""
    return lambda wildcards: asked.threads(kind.name, wildcards.name)


def memory_of(kind):
    """Memory of a kind's job in MB, more for each attempt."""
    return lambda wildcards, attempt: asked.mem_mb(kind.name, wildcards.name, attempt)


def minutes_of(kind):
    """Time of a kind's job, more for each attempt."""
    return lambda wildcards, attempt: asked.minutes(kind.name, wildcards.name, attempt)


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
    for line in overlap_warnings(plan.params):
        logger.warning(line)
    start_service()
    without_rate()
