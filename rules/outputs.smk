"""Every output below data/: a rule for each kind of hemorrhage.study.kinds, and what asks for all of a stage.

in:  the outputs of other kinds that the kind's row names; a model and the data that params.yaml names
out: data/<kind>/<name>/<address>
"""

for kind, makes, on_gpu in RULES:

    rule:
        name:
            makes
        input:
            unpack(inputs_of(kind)),
        output:
            f"data/{kind.name}/{{name}}/{{key}}/manifest.json",
        log:
            f"logs/{FOLDERS.get(kind.name, kind.name)}/{{name}}-{{key}}.log",
        wildcard_constraints:
            name=named(kind, on_gpu),
        priority: kind.priority
        threads: threads_of(kind)
        resources:
            mem_mb=memory_of(kind),
            runtime=minutes_of(kind),
            gpu=gpus if on_gpu else 0,
        params:
            start=start_of(kind),
            usage=f"logs/benchmarks/{kind.name}/{{name}}-{{key}}.tsv",
            command=command_of(kind),
        shell:
            "step {params.start} {params.usage} {params.command} > {log} 2>&1"


# What comes after it is known when it is made: Snakemake plans anew.
checkpoint bracket:
    input:
        unpack(inputs_of(KINDS[BRACKET[0]])),
    output:
        f"data/{BRACKET[0]}/{{name}}/{{key}}/manifest.json",
    log:
        f"logs/{BRACKET[0]}/{{name}}-{{key}}.log",
    wildcard_constraints:
        name=BRACKET[1],
    priority: KINDS[BRACKET[0]].priority
    threads: threads_of(KINDS[BRACKET[0]])
    resources:
        mem_mb=memory_of(KINDS[BRACKET[0]]),
        runtime=minutes_of(KINDS[BRACKET[0]]),
    params:
        usage=f"logs/benchmarks/{BRACKET[0]}/{{name}}-{{key}}.tsv",
        command=command_of(KINDS[BRACKET[0]]),
    shell:
        "step --direct {params.usage} {params.command} > {log} 2>&1"


for stage, target in STAGES.items():

    rule:
        name:
            target
        input:
            [
                plan.manifests(kind.name)
                for plan in family.plans.values()
                for kind in stage_kinds(stage)
            ],
            *[added_outputs(stage_kinds(stage), model) for model in family.plans],
        localrule: True
