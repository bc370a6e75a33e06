"""evaluate: the damage of each variant, token by token and item by item, beside the base model.

in:  data/base, data/texts, data/tasks, data/checkpoints
out: data/references, data/evaluations
"""

TASKS = [plan.manifest("tasks", task) for task in plan.params.evaluate.tasks]
TEXTS = [plan.manifest("texts", corpus) for corpus in plan.params.evaluate.corpora]


rule reference:
    input:
        base=ancient(plan.manifests("base")),
        texts=ancient(TEXTS),
        tasks=ancient(TASKS),
    output:
        "data/references/{name}/{key}/manifest.json",
    log:
        "logs/references/{name}-{key}.log",
    benchmark:
        "logs/benchmarks/references/{name}-{key}.tsv"
    priority: 90
    threads: 2
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        out=lambda wildcards, output: folders(output[0]),
        base=lambda wildcards, input: folders(input.base),
        texts=lambda wildcards, input: folders(input.texts),
        tasks=lambda wildcards, input: folders(input.tasks),
        spec=json.dumps(plan.windows),
    shell:
        "python -m hemorrhage.evaluate.reference {params.out} --base {params.base} --texts {params.texts}"
        " --tasks {params.tasks} --spec {params.spec:q} > {log} 2>&1"


rule evaluate:
    input:
        checkpoint=lambda wildcards: ancient(plan.checkpoint(wildcards.name)),
        base=ancient(plan.manifests("base")),
        reference=ancient(plan.manifests("references")),
        tasks=ancient(TASKS),
    output:
        "data/evaluations/{name}/{key}/manifest.json",
    log:
        "logs/evaluations/{name}-{key}.log",
    benchmark:
        "logs/benchmarks/evaluations/{name}-{key}.tsv"
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        out=lambda wildcards, output: folders(output[0]),
        checkpoint=lambda wildcards, input: folders(input.checkpoint),
        base=lambda wildcards, input: folders(input.base),
        reference=lambda wildcards, input: folders(input.reference),
        tasks=lambda wildcards, input: folders(input.tasks),
    shell:
        "python -m hemorrhage.evaluate {params.out} --variant {wildcards.name}"
        " --checkpoint {params.checkpoint} --base {params.base} --reference {params.reference}"
        " --tasks {params.tasks} > {log} 2>&1"


rule evaluated:
    input:
        plan.manifests("evaluations"),
