"""analyze: from rows to thresholds and metrics, and the page people read; of each model, and of several together.

in:  the outputs that hemorrhage.study.kinds marks as analyzed
out: reports
"""

# Reports keep their names so that commits can be compared; which plan they answer is read from inside them. The jobs
# themselves touch their outputs: Snakemake's touch() would, too, for a job on a cluster that ended without having run.
CURRENT = ".snakemake/current/{}"
Path(".snakemake/current").mkdir(parents=True, exist_ok=True)
REPORTED = [*family.plans.values()] + ([] if family.is_one else [family])
"""What has numbers and a page in a folder of reports: each model, and of several all together."""
WHOLE = REPORTED[-1]
SOUND = CURRENT.format(f"{WHOLE.page}.sound")
for marker, holds in (
    *((marker_of(each, each.rows), each.rows_are_current()) for each in REPORTED),
    *((marker_of(each, each.page), each.report_is_current()) for each in REPORTED),
    (SOUND, WHOLE.report_is_current() and not list_failures(family)),
):
    if holds:
        Path(marker).touch()
    else:
        Path(marker).unlink(missing_ok=True)


for model, plan in family.plans.items():

    # Everything with numbers: rows with their intervals, thresholds, verdicts.
    rule:
        name:
            rule_of("rows", model)
        input:
            unpack(analyzed_outputs(model)),
            added=added_outputs(analyzed_kinds(), model),
        output:
            marker_of(plan, plan.rows),
        log:
            f"logs/analyze/{plan.marker(plan.rows)}.log",
        threads: asked[model].threads(*ROWS)
        resources:
            mem_mb=lambda wildcards, attempt, asked=asked[model]: asked.mem_mb(
                *ROWS, attempt
            ),
            runtime=lambda wildcards, attempt, asked=asked[model]: asked.minutes(
                *ROWS, attempt
            ),
        params:
            usage=f"logs/benchmarks/analyze/{plan.marker(plan.rows)}.tsv",
            command=lambda wildcards, model=model: family.plans[model].rows_command(),
        shell:
            "step --direct {params.usage} {params.command} > {log} 2>&1 && touch {output}"

    # What people read, drawn from the files of the rule before: nothing is resampled or fitted.
    rule:
        name:
            rule_of("page", model)
        input:
            ancient(marker_of(plan, plan.rows)),
        output:
            marker_of(plan, plan.page),
        log:
            f"logs/page/{plan.marker(plan.page)}.log",
        threads: asked[model].threads(*PAGE)
        resources:
            mem_mb=lambda wildcards, attempt, asked=asked[model]: asked.mem_mb(
                *PAGE, attempt
            ),
            runtime=lambda wildcards, attempt, asked=asked[model]: asked.minutes(
                *PAGE, attempt
            ),
        params:
            usage=f"logs/benchmarks/page/{plan.marker(plan.page)}.tsv",
            command=plan.page_command(),
        shell:
            "step --direct {params.usage} {params.command} > {log} 2>&1 && touch {output}"


if not family.is_one:

    rule family_rows:
        """What follows from all models: their rows in one table, and the damage by what the models differ in."""
        input:
            ancient([marker_of(plan, plan.page) for plan in family.plans.values()]),
        output:
            CURRENT.format(family.rows),
        log:
            f"logs/analyze/{family.rows}.log",
        params:
            usage=f"logs/benchmarks/analyze/{family.rows}.tsv",
            command=family.rows_command(),
        shell:
            "step --direct {params.usage} {params.command} > {log} 2>&1 && touch {output}"

    rule family_page:
        """The page of all models."""
        input:
            ancient(CURRENT.format(family.rows)),
        output:
            CURRENT.format(family.page),
        log:
            f"logs/page/{family.page}.log",
        params:
            usage=f"logs/benchmarks/page/{family.page}.tsv",
            command=family.page_command(),
        shell:
            "step --direct {params.usage} {params.command} > {log} 2>&1 && touch {output}"


rule failures:
    """A run in which a variant failed has its report, names the variant, and ends with an error."""
    input:
        CURRENT.format(WHOLE.page),
    output:
        SOUND,
    log:
        f"logs/failures/{WHOLE.page}.log",
    shell:
        f"{literal(sys.executable)} -m hemorrhage.study failed > {{log}} 2>&1 && touch {{output}}"


# Apart from the rules that make them, whose jobs Snakemake would take for cut short, or out of date, by these files' ages.
rule reported:
    """What `snakemake --report` shows of reports/; it alters none of it."""
    input:
        ancient(CURRENT.format(WHOLE.page)),
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
        f"logs/reported/{WHOLE.page}.log",
    shell:
        "sha256sum {output} > {log} 2>&1"
