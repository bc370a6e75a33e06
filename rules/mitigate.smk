"""mitigate: corrections of the decoding of the chosen variants, fitted on one half of a text, scored on the other.

in:  data/base, data/references, data/checkpoints
out: data/corrections
"""


rule mitigate:
    input:
        checkpoint=lambda wildcards: ancient(plan.checkpoint(wildcards.name)),
        base=ancient(plan.manifests("base")),
        reference=ancient(plan.manifests("references")),
    output:
        "data/corrections/{name}/{key}/manifest.json",
    log:
        "logs/corrections/{name}-{key}.log",
    priority: 40
    threads: threads_of("corrections")
    resources:
        gpu=asked.gpu("corrections"),
        mem_mb=memory_of("corrections"),
        runtime=minutes_of("corrections"),
    params:
        usage="logs/benchmarks/corrections/{name}-{key}.tsv",
        out=lambda wildcards, output: folders(output[0]),
        checkpoint=lambda wildcards, input: folders(input.checkpoint),
        base=lambda wildcards, input: folders(input.base),
        reference=lambda wildcards, input: folders(input.reference),
        spec=json.dumps(plan.correction),
    shell:
        "step --gpu={resources.gpu} {params.usage} hemorrhage.mitigate {params.out} --variant {wildcards.name}"
        " --checkpoint {params.checkpoint} --base {params.base} --reference {params.reference}"
        " --spec {params.spec:q} > {log} 2>&1"


rule mitigated:
    input:
        plan.manifests("corrections"),
