"""decode: every decoding strategy on the base model and on the chosen variants.

in:  data/base, data/relatives, data/texts, data/tasks, data/benchmarks, data/checkpoints
out: data/decodes
"""


rule decode:
    input:
        checkpoint=lambda wildcards: ancient(plan.checkpoint(wildcards.name)),
        base=lambda wildcards: ancient(plan.measures(wildcards.name)),
        closed=ancient(plan.asked("closed")),
        open=ancient(plan.asked("open")),
    output:
        "data/decodes/{name}/{key}/manifest.json",
    log:
        "logs/decodes/{name}-{key}.log",
    # The longest jobs: begun early, they do not end alone.
    priority: 50
    threads: threads_of("decodes")
    resources:
        gpu=asked.gpu("decodes"),
        mem_mb=memory_of("decodes"),
        runtime=minutes_of("decodes"),
    params:
        usage="logs/benchmarks/decodes/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        checkpoint=lambda wildcards, input: folders(input.checkpoint),
        base=lambda wildcards, input: folders(input.base),
        closed=lambda wildcards, input: folders(input.closed),
        open=lambda wildcards, input: folders(input.open),
        spec=lambda wildcards: json.dumps(plan.decoding),
    shell:
        "step --gpu={resources.gpu} {params.usage} hemorrhage.decode {params.out} --variant {wildcards.name}"
        " --checkpoint {params.checkpoint} --base {params.base} --closed {params.closed} --open {params.open}"
        " --spec {params.spec:q} > {log} 2>&1"


rule decoded:
    input:
        plan.manifests("decodes"),
