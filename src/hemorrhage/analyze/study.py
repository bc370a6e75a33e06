"""A study as it was analyzed: everything that the page shows, in the files that the analysis leaves in reports/.

hemorrhage.parquet has the rows, provenance.json what they were made from, study.json the rest, by the types here.
Nothing in it has to be resampled or fitted again, and no output below data/ is read for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd

from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.doctor.doctor import Doctor
from hemorrhage.analyze.inputs import Inputs, Output
from hemorrhage.analyze.rows.mitigations import TrialSummary
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.rows.tasks import Suite
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stored import decode, encode
from hemorrhage.analyze.verdicts.claims import Assessment
from hemorrhage.analyze.verdicts.decoding import Findings
from hemorrhage.analyze.verdicts.flags import Flag
from hemorrhage.analyze.verdicts.shipping import Recommendation, Verdict

ROWS, PROVENANCE, REST = "hemorrhage.parquet", "provenance.json", "study.json"

APART = ("rows", "provenance")
"""Fields that have files of their own."""


@dataclass(frozen=True)
class Study:
    """``inputs`` without their tables; ``rows`` as in the schema; ``blocks``: corpus -> number of windows; ``suites``:
    the tasks, by who asked them; ``trials``: the mitigations that were tried; the contents of thresholds.json,
    claims.json and recommendation.json; ``flags``, ``verdicts``, what the decoding sweep and the doctor say."""

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
    provenance: dict[str, Any]

    @cached_property
    def numbers(self) -> Numbers:
        """The rows by variant, metric and data set."""
        return Numbers(self.rows)

    @property
    def corpora(self) -> list[str]:
        """The evaluated corpora, in their order."""
        return list(self.blocks)


def strip_tables(inputs: Inputs) -> Inputs:
    """Return inputs without tables, texts and layers: manifests, and what follows from them."""
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
        others={kind: strip_outputs(outputs) for kind, outputs in inputs.others.items()},
        sibling=None if sibling is None else replace(sibling, decoded=Output(sibling.decoded.manifest, {})),
    )


def strip_outputs(outputs: dict[str, Output]) -> dict[str, Output]:
    """Return outputs without their tables."""
    return {name: Output(output.manifest, {}) for name, output in outputs.items()}


def as_json(study: Study) -> dict[str, Any]:
    """Return the content of study.json."""
    return {field.name: encode(getattr(study, field.name)) for field in fields(study) if field.name not in APART}


def read(reports: Path) -> Study:
    """Read the study of a folder of reports."""
    content = json.loads((reports / REST).read_text(encoding="utf-8"))
    hints = get_type_hints(Study)
    rest = {name: decode(hints[name], value) for name, value in content.items()}
    provenance = json.loads((reports / PROVENANCE).read_text(encoding="utf-8"))
    return Study(rows=pd.read_parquet(reports / ROWS), provenance=provenance, **rest)
