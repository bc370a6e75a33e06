"""evaluate: the damage of each variant, token by token, item by item and block by block, beside the base model.

in:  data/base, data/texts, data/tasks, data/benchmarks, data/checkpoints
out: data/references, data/evaluations; data/harness and data/programs where params.yaml names tasks of theirs
"""

TASKS = [plan.manifest("tasks", task) for task in plan.params.evaluate.tasks]
HARNESS_TASKS = [
    plan.manifest("benchmarks", task) for task in plan.params.evaluate.harness.tasks
]
PROGRAM_TASKS = [
    plan.manifest("benchmarks", task) for task in plan.params.evaluate.programs.tasks
]
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
    priority: 90
    threads: threads_of("references")
    resources:
        gpu=asked.gpu("references"),
        mem_mb=memory_of("references"),
        runtime=minutes_of("references"),
    params:
        usage="logs/benchmarks/references/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        base=lambda wildcards, input: folders(input.base),
        texts=lambda wildcards, input: folders(input.texts),
        tasks=lambda wildcards, input: folders(input.tasks),
        spec=json.dumps(plan.windows),
        memory=plan.params.evaluate.memory_gb,
    shell:
        "step --gpu={resources.gpu} {params.usage} hemorrhage.evaluate.reference {params.out} --base {params.base} --texts {params.texts}"
        " --tasks {params.tasks} --spec {params.spec:q} --memory-gb {params.memory} > {log} 2>&1"


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
    threads: threads_of("evaluations")
    resources:
        gpu=asked.gpu("evaluations"),
        mem_mb=memory_of("evaluations"),
        runtime=minutes_of("evaluations"),
    params:
        usage="logs/benchmarks/evaluations/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        checkpoint=lambda wildcards, input: folders(input.checkpoint),
        base=lambda wildcards, input: folders(input.base),
        reference=lambda wildcards, input: folders(input.reference),
        tasks=lambda wildcards, input: folders(input.tasks),
        spec=lambda wildcards: json.dumps(plan.evaluation(wildcards.name)),
        memory=plan.params.evaluate.memory_gb,
    shell:
        "step --gpu={resources.gpu} {params.usage} hemorrhage.evaluate {params.out} --variant {wildcards.name}"
        " --checkpoint {params.checkpoint} --base {params.base} --reference {params.reference}"
        " --tasks {params.tasks} --spec {params.spec:q} --memory-gb {params.memory} > {log} 2>&1"


rule harness:
    input:
        checkpoint=lambda wildcards: ancient(plan.checkpoint(wildcards.name)),
        base=ancient(plan.manifests("base")),
        benchmarks=ancient(HARNESS_TASKS),
    output:
        "data/harness/{name}/{key}/manifest.json",
    log:
        "logs/harness/{name}-{key}.log",
    threads: threads_of("harness")
    resources:
        gpu=asked.gpu("harness"),
        mem_mb=memory_of("harness"),
        runtime=minutes_of("harness"),
    params:
        usage="logs/benchmarks/harness/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        checkpoint=lambda wildcards, input: folders(input.checkpoint),
        base=lambda wildcards, input: folders(input.base),
        benchmarks=lambda wildcards, input: folders(input.benchmarks),
        spec=json.dumps(plan.harnessed),
    shell:
        "step --gpu={resources.gpu} {params.usage} hemorrhage.evaluate.harness {params.out} --variant {wildcards.name}"
        " --checkpoint {params.checkpoint} --base {params.base} --benchmarks {params.benchmarks}"
        " --spec {params.spec:q} > {log} 2>&1"


rule programs:
    input:
        checkpoint=lambda wildcards: ancient(plan.checkpoint(wildcards.name)),
        base=ancient(plan.manifests("base")),
        benchmarks=ancient(PROGRAM_TASKS),
    output:
        "data/programs/{name}/{key}/manifest.json",
    log:
        "logs/programs/{name}-{key}.log",
    threads: threads_of("programs")
    resources:
        gpu=asked.gpu("programs"),
        mem_mb=memory_of("programs"),
        runtime=minutes_of("programs"),
    params:
        usage="logs/benchmarks/programs/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        checkpoint=lambda wildcards, input: folders(input.checkpoint),
        base=lambda wildcards, input: folders(input.base),
        benchmarks=lambda wildcards, input: folders(input.benchmarks),
        spec=json.dumps(plan.programmed),
    shell:
        "step --gpu={resources.gpu} {params.usage} hemorrhage.evaluate.programs {params.out} --variant {wildcards.name}"
        " --checkpoint {params.checkpoint} --base {params.base} --benchmarks {params.benchmarks}"
        " --spec {params.spec:q} > {log} 2>&1"


rule evaluated:
    input:
        plan.manifests("evaluations"),
        plan.manifests("harness"),
        plan.manifests("programs"),
