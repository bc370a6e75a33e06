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
            gpu=asked.gpus if on_gpu else 0,
        params:
            start=start_of(kind),
            usage=f"logs/benchmarks/{kind.name}/{{name}}-{{key}}.tsv",
            command=command_of(kind),
        shell:
            "step {params.start} {params.usage} {params.command} > {log} 2>&1"


for stage, target in STAGES.items():

    rule:
        name:
            target
        input:
            [plan.manifests(kind.name) for kind in stage_kinds(stage)],
        localrule: True
