"""calibrate: the base model, the texts and tasks, and the statistics that compression shares.

in:  a wheel, hub or folder (model); the embedded texts, a mirror or the hub (data)
out: data/base, data/relatives, data/texts, data/tasks, data/benchmarks, data/calibrations, data/gradients
"""


rule base:
    output:
        "data/base/{name}/{key}/manifest.json",
    log:
        "logs/base/{name}-{key}.log",
    priority: 100
    threads: threads_of("base")
    resources:
        mem_mb=memory_of("base"),
        runtime=minutes_of("base"),
    params:
        usage="logs/benchmarks/base/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        spec=lambda wildcards: json.dumps(plan.model),
    shell:
        "step --direct {params.usage} hemorrhage.models {params.out} --spec {params.spec:q} > {log} 2>&1"


rule relative:
    output:
        "data/relatives/{name}/{key}/manifest.json",
    log:
        "logs/relatives/{name}-{key}.log",
    priority: 100
    threads: threads_of("relatives")
    resources:
        mem_mb=memory_of("relatives"),
        runtime=minutes_of("relatives"),
    params:
        usage="logs/benchmarks/relatives/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        spec=lambda wildcards: json.dumps(plan.relative),
    shell:
        "step --direct {params.usage} hemorrhage.models {params.out} --spec {params.spec:q} > {log} 2>&1"


rule text:
    input:
        base=ancient(plan.manifests("base")),
    output:
        "data/texts/{name}/{key}/manifest.json",
    log:
        "logs/texts/{name}-{key}.log",
    priority: 100
    threads: threads_of("texts")
    resources:
        mem_mb=memory_of("texts"),
        runtime=minutes_of("texts"),
    params:
        usage="logs/benchmarks/texts/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        base=lambda wildcards, input: folders(input.base),
        data=lambda wildcards: json.dumps(plan.data(wildcards.name)),
        needs=lambda wildcards: json.dumps(plan.needs(wildcards.name)),
    shell:
        "step --direct {params.usage} hemorrhage.data.texts {params.out} --corpus {wildcards.name} --base {params.base}"
        " --data {params.data:q} --needs {params.needs:q} > {log} 2>&1"


rule task:
    output:
        "data/tasks/{name}/{key}/manifest.json",
    log:
        "logs/tasks/{name}-{key}.log",
    priority: 100
    threads: threads_of("tasks")
    resources:
        mem_mb=memory_of("tasks"),
        runtime=minutes_of("tasks"),
    params:
        usage="logs/benchmarks/tasks/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        number=plan.params.data.items,
        seed=plan.params.data.seed,
    shell:
        "step --direct {params.usage} hemorrhage.data.tasks.probes {params.out} --task {wildcards.name}"
        " --items {params.number} --seed {params.seed} > {log} 2>&1"


rule benchmark:
    output:
        "data/benchmarks/{name}/{key}/manifest.json",
    log:
        "logs/benchmarks_data/{name}-{key}.log",
    priority: 100
    threads: threads_of("benchmarks")
    resources:
        mem_mb=memory_of("benchmarks"),
        runtime=minutes_of("benchmarks"),
    params:
        usage="logs/benchmarks/benchmarks/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        step=lambda wildcards: plan.preparation(wildcards.name),
        data=lambda wildcards: json.dumps(plan.benchmark_data(wildcards.name)),
    shell:
        "step --direct {params.usage} {params.step} {params.out} --task {wildcards.name}"
        " --data {params.data:q} > {log} 2>&1"


rule calibrate:
    input:
        base=ancient(plan.manifests("base")),
        texts=ancient(
            [plan.manifest("texts", name) for name in plan.params.calibrate.corpora]
        ),
    output:
        "data/calibrations/{name}/{key}/manifest.json",
    log:
        "logs/calibrations/{name}-{key}.log",
    priority: 90
    threads: threads_of("calibrations")
    resources:
        gpu=asked.gpu("calibrations"),
        mem_mb=memory_of("calibrations"),
        runtime=minutes_of("calibrations"),
    params:
        usage="logs/benchmarks/calibrations/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        base=lambda wildcards, input: folders(input.base),
        texts=lambda wildcards, input: folders(input.texts),
        spec=json.dumps(plan.sampling),
    shell:
        "step --gpu={resources.gpu} {params.usage} hemorrhage.calibrate {params.out} --base {params.base} --texts {params.texts}"
        " --spec {params.spec:q} > {log} 2>&1"


rule gradients:
    input:
        base=ancient(plan.manifests("base")),
        calibration=ancient(plan.manifests("calibrations")),
    output:
        "data/gradients/{name}/{key}/manifest.json",
    log:
        "logs/gradients/{name}-{key}.log",
    priority: 80
    threads: threads_of("gradients")
    resources:
        gpu=asked.gpu("gradients"),
        mem_mb=memory_of("gradients"),
        runtime=minutes_of("gradients"),
    params:
        usage="logs/benchmarks/gradients/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        base=lambda wildcards, input: folders(input.base),
        calibration=lambda wildcards, input: folders(input.calibration),
        spec=lambda wildcards: json.dumps({"part": wildcards.name}),
    shell:
        "step --gpu={resources.gpu} {params.usage} hemorrhage.calibrate.gradients {params.out} --base {params.base}"
        " --calibration {params.calibration} --spec {params.spec:q} > {log} 2>&1"


rule calibrated:
    input:
        plan.manifests("base"),
        plan.manifests("texts"),
        plan.manifests("tasks"),
        plan.manifests("benchmarks"),
        plan.manifests("calibrations"),
