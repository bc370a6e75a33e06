"""The plan of params.yaml: what exists, where it lies, what a rule needs.

What an address names never changes, so every input is ancient(): its absence matters, not its age.
"""

import os
import re
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
from hemorrhage.study.family import Family
from hemorrhage.study.outputs import list_failures
from hemorrhage.tools import adopt

# What a killed adoption left at addresses that it had not proven, and what a killed run left of outputs that are whole.
adopt.take_back()
remove_marks(Path())

try:
    family = Family.read()
except ConfigError as error:
    sys.exit(str(error))

# A profile says whether jobs that run the model get a GPU: the machine that plans may have none.
gpus = int(config.get("gpu", 0))
asked = {
    name: Requests(Workload(plan), Costs.read(), gpus)
    for name, plan in family.plans.items()
}


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
    if not kind.rule_on_gpu:
        return every
    patterns = [each.names_pattern(kind.name, on_gpu) for each in asked.values()]
    return "|".join(dict.fromkeys(patterns))


def owner_of(kind, wildcards):
    """A model that asks for an output: the first of those that share it."""
    return family.owner(kind.name, wildcards.name, wildcards.key)


def inputs_of(kind):
    """Input function: what an output of the kind is made from."""

    def inputs(wildcards):
        plan = family.plans[owner_of(kind, wildcards)]
        return {
            option: [ancient(manifest) for manifest in manifests]
            for option, manifests in plan.inputs(kind.name, wildcards.name).items()
        }

    return inputs


def extended_plan(model):
    """A model's plan with what the bracket adds. Until that is made, Snakemake makes it first and asks again."""
    plan = family.plans[model]
    if plan.is_open:
        kind, name = BRACKET
        checkpoints.bracket.get(name=name, key=plan.address(kind, name))
    if plan.design is plan.named:
        plan = family.refresh(model)
    return plan


def added_outputs(of, model):
    """Input function: what a screening adds to some kinds. Others are asked for without waiting for it."""
    plan = family.plans[model]

    def added(wildcards):
        if not any(plan.possible_names(kind.name) != named[kind.name] for kind in of):
            return []
        extended = extended_plan(model)
        return [
            ancient(extended.manifest(kind.name, name))
            for kind in of
            for name in extended.names(kind.name)
            if name not in named[kind.name]
        ]

    named = {
        kind.name: {
            name: plan.address(kind.name, name) for name in kind.names(plan.named)
        }
        for kind in of
    }
    return added


def analyzed_outputs(model):
    """Input function: what the analysis of a model reads of params.yaml."""
    return lambda wildcards: {
        kind.name: ancient(family.plans[model].manifests(kind.name))
        for kind in analyzed_kinds()
    }


def marker_of(reported, address):
    """The file that says that the numbers or the page at an address are in reports/."""
    return f".snakemake/current/{reported.marker(address)}"


def rule_of(name, model):
    """The name of a rule that makes the numbers or the page of a model."""
    return f"{name}_{re.sub(r'[^a-z0-9]', '_', model)}" if model else name


def start_of(kind):
    """How a kind's step is started: see rules/service.smk."""
    served = kind.on_gpu is not None
    return lambda wildcards, resources: (
        f"--gpu={resources.gpu}" if served else "--direct"
    )


def command_of(kind):
    """The module and the arguments of a kind's job."""
    return lambda wildcards: family.plans[owner_of(kind, wildcards)].command(
        kind.name, wildcards.name
    )


def threads_of(kind):
    """Threads of a kind's job, from the cost model."""
    return lambda wildcards: asked[owner_of(kind, wildcards)].threads(
        kind.name, wildcards.name
    )


def memory_of(kind):
    """Memory of a kind's job in MB, more for each attempt."""
    return lambda wildcards, attempt: asked[owner_of(kind, wildcards)].mem_mb(
        kind.name, wildcards.name, attempt
    )


def minutes_of(kind):
    """Time of a kind's job, more for each attempt."""
    return lambda wildcards, attempt: asked[owner_of(kind, wildcards)].minutes(
        kind.name, wildcards.name, attempt
    )


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
    for line in overlap_warnings(next(iter(family.plans.values())).params):
        logger.warning(line)
    start_service()
    without_rate()
