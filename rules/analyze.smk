"""analyze: from rows to thresholds, metrics and the page people read.

in:  data/base, data/relatives, data/evaluations, data/harness, data/programs, data/decodes, the manifests of data/checkpoints,
     tokens of data/calibrations and data/references
out: reports
"""

# Reports keep their names so that commits can be compared; which plan they answer is read from inside them. The job itself
# touches its output: Snakemake's touch() would, too, for a job on a cluster that ended without having run.
CURRENT = f".snakemake/current/{plan.report}"
Path(".snakemake/current").mkdir(parents=True, exist_ok=True)
SOUND = f"{CURRENT}.sound"
made = plan.report_is_current()
for marker, holds in ((CURRENT, made), (SOUND, made and not failed(plan))):
    if holds:
        Path(marker).touch()
    else:
        Path(marker).unlink(missing_ok=True)


rule analyze:
    input:
        base=ancient(plan.manifests("base")),
        checkpoints=ancient(plan.manifests("checkpoints")),
        evaluations=ancient(plan.manifests("evaluations")),
        harness=ancient(plan.manifests("harness")),
        programs=ancient(plan.manifests("programs")),
        decodes=ancient(plan.manifests("decodes")),
        corrections=ancient(plan.manifests("corrections")),
        relative=ancient(plan.manifests("relatives")),
        calibrations=ancient(plan.manifests("calibrations")),
        references=ancient(plan.manifests("references")),
    output:
        CURRENT,
    log:
        f"logs/analyze/{plan.report}.log",
    threads: asked.threads("report", "report")
    resources:
        mem_mb=lambda wildcards, attempt: asked.mem_mb("report", "report", attempt),
        runtime=lambda wildcards, attempt: asked.minutes("report", "report", attempt),
    params:
        usage=f"logs/benchmarks/analyze/{plan.report}.tsv",
        base=lambda wildcards, input: folders(input.base),
        checkpoints=lambda wildcards, input: folders(input.checkpoints),
        evaluations=lambda wildcards, input: folders(input.evaluations),
        harness=lambda wildcards, input: folders(input.harness),
        programs=lambda wildcards, input: folders(input.programs),
        decodes=lambda wildcards, input: folders(input.decodes),
        corrections=lambda wildcards, input: folders(input.corrections),
        relative=lambda wildcards, input: (
            f"--relative {folders(input.relative)} --aligned {plan.aligned}"
            if input.relative
            else ""
        ),
        tokens=lambda wildcards, input: (
            f"--calibrations {folders(input.calibrations)} --references {folders(input.references)}"
        ),
        spec=json.dumps(plan.analysis),
        address=plan.report,
    shell:
        "step --direct {params.usage} hemorrhage.analyze reports --base {params.base} --checkpoints {params.checkpoints}"
        " --evaluations {params.evaluations} --harness {params.harness} --programs {params.programs} --decodes {params.decodes}"
        " --corrections {params.corrections}"
        " {params.relative}"
        " {params.tokens}"
        " --spec {params.spec:q} --address {params.address} > {log} 2>&1 && touch {output}"


rule failures:
    """A run in which a variant failed has its report, names the variant, and ends with an error."""
    input:
        CURRENT,
    output:
        SOUND,
    log:
        f"logs/failures/{plan.report}.log",
    shell:
        f"{literal(sys.executable)} -m hemorrhage.study.plan failed > {{log}} 2>&1 && touch {{output}}"
