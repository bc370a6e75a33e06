"""A study as it was analyzed: everything that the page shows, in the files that the analysis leaves in reports/.

hemorrhage.parquet has the rows, provenance.json what they were made from, study.json the rest, by the types here.
Nothing in it has to be resampled or fitted again, and no output below data/ is read for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import pandas as pd

from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.doctor.doctor import Doctor
from hemorrhage.analyze.inputs import Inputs, Output
from hemorrhage.analyze.rows.mitigations import TrialSummary
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.rows.tasks import Suite
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stored import Json, decode, encode
from hemorrhage.analyze.verdicts.causes import Cause
from hemorrhage.analyze.verdicts.claims import Assessment
from hemorrhage.analyze.verdicts.decoding import Findings
from hemorrhage.analyze.verdicts.flags import Flag
from hemorrhage.analyze.verdicts.mapping import Effect
from hemorrhage.analyze.verdicts.ranking import Rank
from hemorrhage.analyze.verdicts.shipping import Recommendation, Verdict

ROWS, PROVENANCE, REST = "hemorrhage.parquet", "provenance.json", "study.json"

WITH_OWN_FILES = ("rows", "provenance")
"""Fields that are not in study.json."""


class Counts(TypedDict):
    """How much was analyzed; ``windows``: by corpus."""

    variants: int
    rows: int
    failed_rows: int
    windows: dict[str, int]


class Provenance(TypedDict, total=False):
    """The content of provenance.json: what the report was made from.

    ``address``: of the numbers; ``page``: of the page, once it is drawn. ``environments``: by id.
    """

    address: str
    page: str
    spec: dict[str, Any]
    environments: dict[str, dict[str, str]]
    analyzed_in: str
    inputs: dict[str, list[str]]
    seeds: list[int]
    counts: Counts


@dataclass(frozen=True)
class Study:
    """Everything that the page shows.

    ``inputs`` without their tables; ``rows`` as in the schema. ``blocks``: corpus -> number of windows. ``suites``: the
    tasks, by the step that scored them. ``trials``: the mitigations that were tried. ``recommended``: the content of
    recommendation.json. ``ranking``: the variants in the order of their KL, by corpus. ``mapping``: what each kind of
    modification does to attention, errors and predictions. ``doubled``: the variants of more than twice the base's
    perplexity, with the cause.
    """

    inputs: Inputs
    rows: pd.DataFrame
    blocks: dict[str, int]
    suites: list[Suite]
    trials: list[TrialSummary]
    thresholds: list[CurveEntry]
    flags: list[Flag]
    verdicts: list[Verdict]
    recommended: Recommendation
    decoded: Findings
    examined: Doctor
    claims: list[Assessment]
    spec: Spec
    provenance: Provenance
    ranking: dict[str, list[Rank]] = field(default_factory=dict)
    mapping: list[Effect] = field(default_factory=list)
    doubled: list[Cause] = field(default_factory=list)

    @cached_property
    def numbers(self) -> Numbers:
        """The rows by variant, metric and data set."""
        return Numbers(self.rows)

    @property
    def corpora(self) -> list[str]:
        """The evaluated corpora, in their order."""
        return list(self.blocks)


def strip_tables(inputs: Inputs) -> Inputs:
    """Return the inputs without tables, texts and layers: manifests, and what follows from them."""
    sibling = inputs.sibling
    return Inputs(
        base=inputs.base,
        variants={name: replace(variant, layers={}) for name, variant in inputs.variants.items()},
        evaluations=strip_outputs(inputs.evaluations),
        decodes=strip_outputs(inputs.decodes),
        harness=strip_outputs(inputs.harness),
        code_tasks=strip_outputs(inputs.code_tasks),
        directories=inputs.directories,
        corrections=strip_outputs(inputs.corrections),
        served={engine: strip_outputs(outputs) for engine, outputs in inputs.served.items()},
        others={kind: strip_outputs(outputs) for kind, outputs in inputs.others.items()},
        bracket=inputs.bracket,
        trainings=inputs.trainings,
        confirmations=strip_outputs(inputs.confirmations),
        sibling=None if sibling is None else replace(sibling, decoded=Output(sibling.decoded.manifest, {})),
    )


def strip_outputs(outputs: dict[str, Output]) -> dict[str, Output]:
    """Return the outputs without their tables."""
    return {name: Output(output.manifest, {}) for name, output in outputs.items()}


def as_json(study: Study) -> Json:
    """Return the content of study.json."""
    return {each.name: encode(getattr(study, each.name)) for each in fields(study) if each.name not in WITH_OWN_FILES}


def read(reports: Path) -> Study:
    """Read the study of a folder of reports."""
    content = json.loads((reports / REST).read_text(encoding="utf-8"))
    hints = get_type_hints(Study)
    rest = {name: decode(hints[name], value) for name, value in content.items()}
    provenance = json.loads((reports / PROVENANCE).read_text(encoding="utf-8"))
    return Study(rows=pd.read_parquet(reports / ROWS), provenance=provenance, **rest)
