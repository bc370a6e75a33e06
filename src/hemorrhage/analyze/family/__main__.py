"""Step ``family_rows``: what follows from all models of a study, from the reports of each.

    python -m hemorrhage.analyze.family REPORTS --models JSON --spec JSON --address A

``models``: model -> ``{"group": str, "factors": {key: value}}``; the reports of each lie in ``REPORTS/<model>``. Writes
the same files as the analysis of one model (hemorrhage.analyze): tables with the columns ``model`` and ``group`` in
front, JSON by model, and study.json with what is concluded from all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from hemorrhage.analyze.family import merge, results
from hemorrhage.analyze.family.models import Description, missing, read
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stored import Json
from hemorrhage.analyze.study import PROVENANCE, REST
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import environment, whole
from hemorrhage.runtime.step import InputError

NEXT = "# Of several models each has its own: reports/<model>/next.yaml\n{}\n"


def analyze(reports: Path, described: Mapping[str, Description], spec: Spec, address: str) -> results.Results:
    """Write what follows from all models into ``reports``. Raises InputError where there is none."""
    models, gaps = read(reports, described), missing(reports, described)
    if not models:
        raise InputError(f"no model of this study could be made; {gaps[0].model}: {gaps[0].reason}")
    concluded = results.conclude(models, spec, gaps)
    (reports / PROVENANCE).unlink(missing_ok=True)
    for name in merge.TABLES:
        with whole(reports / name) as unfinished:
            merge.table(reports, models, name).to_parquet(unfinished, index=False)
    for name in merge.CSVS:
        with whole(reports / name) as unfinished:
            merge.table(reports, models, name).to_csv(unfinished, index=False)
    for name in merge.BY_MODEL:
        _save(reports / name, merge.by_model(reports, models, name), 2)
    _save(reports / merge.HEADLINE, merge.headline(reports, models), 2)
    with whole(reports / "next.yaml") as unfinished:
        unfinished.write_text(NEXT, encoding="utf-8")
    _save(reports / REST, results.as_json(concluded), None)
    _save(
        reports / PROVENANCE,
        {
            "address": address,
            "spec": dataclasses.asdict(spec),
            "analyzed_in": environment()["id"],
            "environments": {environment()["id"]: environment()},
            "models": {model.name: {"group": model.group, "factors": dict(model.factors)} for model in models},
        },
        2,
    )
    return concluded


def _save(path: Path, content: Json, indent: int | None) -> None:
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def main() -> None:
    """Run the step; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.analyze.family")
    parser.add_argument("reports", type=Path)
    for name in ("--models", "--spec", "--address"):
        parser.add_argument(name, required=True)
    arguments = parser.parse_args()
    step.start()
    analyze(arguments.reports, json.loads(arguments.models), Spec.parse(arguments.spec), arguments.address)


if __name__ == "__main__":
    main()
