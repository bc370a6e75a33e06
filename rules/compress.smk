"""compress: one altered model for each variant of params.yaml.

in:  data/base; data/calibrations and data/gradients where the method reads statistics; the variant it starts on
out: data/checkpoints
"""


rule compress:
    input:
        base=ancient(plan.manifests("base")),
        calibration=statistics,
        gradients=gradients,
        earlier=earlier,
    output:
        "data/checkpoints/{name}/{key}/manifest.json",
    log:
        "logs/checkpoints/{name}-{key}.log",
    wildcard_constraints:
        name=asked.named("checkpoints", on_gpu=False),
    threads: threads_of("checkpoints")
    resources:
        mem_mb=memory_of("checkpoints"),
        runtime=minutes_of("checkpoints"),
        gpu=0,
    params:
        usage="logs/benchmarks/checkpoints/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        base=lambda wildcards, input: folders(input.base),
        calibration=lambda wildcards, input: (
            f"--calibration {folders(input.calibration)}" if input.calibration else ""
        ),
        gradients=lambda wildcards, input: (
            f"--gradients {folders(input.gradients)}" if input.gradients else ""
        ),
        parent=lambda wildcards, input: (
            f"--parent {folders(input.earlier[0])}" if input.earlier else ""
        ),
        spec=lambda wildcards: json.dumps(plan.alteration(wildcards.name)),
    shell:
        "step --gpu={resources.gpu} {params.usage} hemorrhage.compress {params.out} --variant {wildcards.name} --base {params.base}"
        " {params.parent} {params.calibration} {params.gradients} --spec {params.spec:q} > {log} 2>&1"


# A rule of its own: a cluster gives all jobs of a rule the same.
use rule compress as compress_on_gpu with:
    wildcard_constraints:
        name=asked.named("checkpoints", on_gpu=True),
    resources:
        mem_mb=memory_of("checkpoints"),
        runtime=minutes_of("checkpoints"),
        gpu=asked.gpus,


rule compressed:
    input:
        plan.manifests("checkpoints"),
