"""How a language model bleeds: calibrate -> compress -> evaluate -> decode -> analyze."""

from snakemake.utils import min_version

min_version("9.27")


container: "docker://python:3.11"


include: "rules/plan.smk"
include: "rules/service.smk"
include: "rules/outputs.smk"
include: "rules/analyze.smk"


localrules:
    all,
    analyzed,
    failures,


rule all:
    default_target: True
    input:
        SOUND,


rule analyzed:
    input:
        CURRENT,
