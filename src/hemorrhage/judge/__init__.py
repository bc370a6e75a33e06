"""Judging published files against their base in one call: the steps and the analysis of a study, without Snakemake."""
