"""How a language model bleeds: calibrate -> compress -> evaluate -> decode -> analyze."""

from snakemake.utils import min_version

min_version("9.27")


report: "rules/report/workflow.rst"


include: "rules/plan.smk"
include: "rules/service.smk"
include: "rules/outputs.smk"
include: "rules/analyze.smk"


localrules:
    all,
    analyzed,
    failures,
    reported,


rule all:
    default_target: True
    input:
        SOUND,
        rules.reported.output,


rule analyzed:
    input:
        CURRENT.format(WHOLE.page),
