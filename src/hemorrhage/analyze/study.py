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
from hemorrhage.analyze.inputs import Inputs, Output, Variant
from hemorrhage.analyze.rows.mitigations import Tried
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.rows.tasks import Suite
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stored import decode, encode
from hemorrhage.analyze.verdicts.decoding import Findings
from hemorrhage.analyze.verdicts.flags import Flag
from hemorrhage.analyze.verdicts.shipping import Judged

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
    trials: list[Tried]
    thresholds: list[CurveEntry]
    flags: list[Flag]
    verdicts: list[Judged]
    recommended: dict[str, Any]
    decoded: Findings
    examined: Doctor
    claims: list[dict[str, Any]]
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


def bare(found: Inputs) -> Inputs:
    """Inputs without tables, texts and layers: manifests, and what follows from them."""
    sibling = found.sibling
    return Inputs(
        base=found.base,
        variants={name: _bare_variant(variant) for name, variant in found.variants.items()},
        evaluations=bare_outputs(found.evaluations),
        decodes=bare_outputs(found.decodes),
        harness=bare_outputs(found.harness),
        code_tasks=bare_outputs(found.code_tasks),
        directories=found.directories,
        corrections=bare_outputs(found.corrections),
        others={kind: bare_outputs(outputs) for kind, outputs in found.others.items()},
        sibling=None if sibling is None else replace(sibling, decoded=Output(sibling.decoded.manifest, {})),
    )


def bare_outputs(outputs: dict[str, Output]) -> dict[str, Output]:
    """Outputs without their tables."""
    return {name: Output(output.manifest, {}) for name, output in outputs.items()}


def _bare_variant(variant: Variant) -> Variant:
    return replace(variant, layers={})


def as_json(study: Study) -> dict[str, Any]:
    """The content of study.json."""
    return {one.name: encode(getattr(study, one.name)) for one in fields(study) if one.name not in APART}


def read(reports: Path) -> Study:
    """The study of a folder of reports."""
    content = json.loads((reports / REST).read_text(encoding="utf-8"))
    hints = get_type_hints(Study)
    rest = {name: decode(hints[name], value) for name, value in content.items()}
    provenance = json.loads((reports / PROVENANCE).read_text(encoding="utf-8"))
    return Study(rows=pd.read_parquet(reports / ROWS), provenance=provenance, **rest)
