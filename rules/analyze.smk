"""analyze: from rows to thresholds, metrics and the page people read.

in:  data/evaluations, data/decodes, the manifests of data/checkpoints
out: reports
"""

# Reports keep their names so that commits can be compared; which plan they answer is read from inside them.
CURRENT = f".snakemake/current/{plan.report}"
Path(".snakemake/current").mkdir(parents=True, exist_ok=True)
if plan.report_is_current():
    Path(CURRENT).touch()
else:
    Path(CURRENT).unlink(missing_ok=True)


rule analyze:
    input:
        base=ancient(plan.manifests("base")),
        checkpoints=ancient(plan.manifests("checkpoints")),
        evaluations=ancient(plan.manifests("evaluations")),
        decodes=ancient(plan.manifests("decodes")),
    output:
        current=touch(CURRENT),
    log:
        f"logs/analyze/{plan.report}.log",
    benchmark:
        f"logs/benchmarks/analyze/{plan.report}.tsv"
    params:
        base=lambda wildcards, input: folders(input.base),
        checkpoints=lambda wildcards, input: folders(input.checkpoints),
        evaluations=lambda wildcards, input: folders(input.evaluations),
        decodes=lambda wildcards, input: folders(input.decodes),
        spec=json.dumps(plan.analysis),
        address=plan.report,
    shell:
        "python -m hemorrhage.analyze reports --base {params.base} --checkpoints {params.checkpoints}"
        " --evaluations {params.evaluations} --decodes {params.decodes}"
        " --spec {params.spec:q} --address {params.address} > {log} 2>&1"
