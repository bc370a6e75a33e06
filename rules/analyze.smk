"""analyze: from rows to thresholds and metrics, and the page people read.

in:  the outputs that hemorrhage.study.kinds marks as analyzed
out: reports
"""

# Reports keep their names so that commits can be compared; which plan they answer is read from inside them. The jobs
# themselves touch their outputs: Snakemake's touch() would, too, for a job on a cluster that ended without having run.
NUMBERS = f".snakemake/current/{plan.rows}"
CURRENT = f".snakemake/current/{plan.page}"
SOUND = f"{CURRENT}.sound"
Path(".snakemake/current").mkdir(parents=True, exist_ok=True)
made = plan.report_is_current()
for marker, holds in (
    (NUMBERS, plan.rows_are_current()),
    (CURRENT, made),
    (SOUND, made and not list_failures(plan)),
):
    if holds:
        Path(marker).touch()
    else:
        Path(marker).unlink(missing_ok=True)


rule rows:
    """Everything with numbers: rows with their intervals, thresholds, verdicts."""
    input:
        unpack(analyzed_outputs),
        added=added_outputs(analyzed_kinds()),
    output:
        NUMBERS,
    log:
        f"logs/analyze/{plan.rows}.log",
    threads: asked.threads(*ROWS)
    resources:
        mem_mb=lambda wildcards, attempt: asked.mem_mb(*ROWS, attempt),
        runtime=lambda wildcards, attempt: asked.minutes(*ROWS, attempt),
    params:
        usage=f"logs/benchmarks/analyze/{plan.rows}.tsv",
        command=lambda wildcards: plan.rows_command(),
    shell:
        "step --direct {params.usage} {params.command} > {log} 2>&1 && touch {output}"


rule page:
    """What people read, drawn from the files of the rule before: nothing is resampled or fitted."""
    input:
        ancient(NUMBERS),
    output:
        CURRENT,
    log:
        f"logs/page/{plan.page}.log",
    threads: asked.threads(*PAGE)
    resources:
        mem_mb=lambda wildcards, attempt: asked.mem_mb(*PAGE, attempt),
        runtime=lambda wildcards, attempt: asked.minutes(*PAGE, attempt),
    params:
        usage=f"logs/benchmarks/page/{plan.page}.tsv",
        command=plan.page_command(),
    shell:
        "step --direct {params.usage} {params.command} > {log} 2>&1 && touch {output}"


rule failures:
    """A run in which a variant failed has its report, names the variant, and ends with an error."""
    input:
        CURRENT,
    output:
        SOUND,
    log:
        f"logs/failures/{plan.page}.log",
    shell:
        f"{literal(sys.executable)} -m hemorrhage.study.plan failed > {{log}} 2>&1 && touch {{output}}"


# Apart from the rules that make them, whose jobs Snakemake would take for cut short, or out of date, by these files' ages.
rule reported:
    """What `snakemake --report` shows of reports/; it alters none of it."""
    input:
        ancient(CURRENT),
    output:
        report(
            update("reports/index.html"),
            category="The report",
            caption="report/page.rst",
            labels={"what": "every figure and table on one page"},
        ),
        report(
            update("reports/metrics.json"),
            category="Numbers",
            caption="report/metrics.rst",
            labels={"what": "headline metrics of every variant"},
        ),
        report(
            update("reports/curves.csv"),
            category="Numbers",
            caption="report/curves.rst",
            labels={"what": "damage curves"},
        ),
        report(
            update("reports/thresholds.csv"),
            category="Numbers",
            caption="report/thresholds.rst",
            labels={"what": "thresholds of the damage curves"},
        ),
        report(
            update("reports/decoding.csv"),
            category="Numbers",
            caption="report/decoding.rst",
            labels={"what": "accuracy by decoding strategy"},
        ),
        report(
            update("reports/front.csv"),
            category="What to ship",
            caption="report/front.rst",
            labels={"what": "size against damage"},
        ),
        report(
            update("reports/recommendation.json"),
            category="What to ship",
            caption="report/recommendation.rst",
            labels={"what": "the most compressed variant inside the budget"},
        ),
        report(
            update("reports/claims.json"),
            category="What to ship",
            caption="report/claims.rst",
            labels={"what": "published claims, checked"},
        ),
    log:
        f"logs/reported/{plan.page}.log",
    shell:
        "sha256sum {output} > {log} 2>&1"
