"""Step ``analyze``: rows with intervals, thresholds, metrics, plots and the report.

    python -m hemorrhage.analyze OUT --base DIR --checkpoints DIR... --evaluations DIR... --harness DIR...
        --programs DIR... --decodes DIR... --corrections DIR... --calibrations DIR... --references DIR...
        [--relative DIR --aligned yes|no] --spec JSON
        --address A

``--relative`` is the second model of the family that was decoded, ``--aligned`` whether it is the aligned one.
``spec``: ``{"resamples": int, "confidence": float, "seed": int, "budget": {limit: float}}``. Every file of OUT
appears whole; ``provenance.json``, which says at which address the report was made, is removed first and
written last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hemorrhage.analyze import inputs
from hemorrhage.analyze.axes import sweeps
from hemorrhage.analyze.curves import next_points
from hemorrhage.analyze.curves.definitions import DEFINITIONS, find_thresholds
from hemorrhage.analyze.doctor import doctor
from hemorrhage.analyze.report import decoding as decoding_page
from hemorrhage.analyze.report import page as report
from hemorrhage.analyze.rows import plots, tables
from hemorrhage.analyze.rows import results as rows
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts import claims, flags, shipping
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import environment

PROVENANCE = "provenance.json"


def analyze(out: Path, found: inputs.Inputs, spec: Spec, address: str) -> None:
    """Write all files of the report into ``out``."""
    results = rows.build(found, spec)
    thresholds = find_thresholds(found, results, spec)
    numbers = tables.Numbers(results.rows)
    corpora = list(results.blocks)
    made_from = provenance(found, results, spec, address)
    flagged = flags.find(found, results.rows, corpora)
    verdicts = shipping.verdicts(found, results.rows, spec)
    examined = doctor.examine(found, results.rows, corpora, spec, report.model_name(found.base))
    recommended = shipping.recommend(verdicts, results, found, spec)
    decoded = decoding_page.find(found, thresholds, verdicts, spec)
    judged = claims.judge(claims.Evidence(found, results, numbers, thresholds, spec, corpora))
    page = report.render(
        found, results, thresholds, flagged, verdicts, recommended, decoded, examined, judged, spec, made_from
    )

    out.mkdir(parents=True, exist_ok=True)
    (out / PROVENANCE).unlink(missing_ok=True)
    results.rows.attrs["confidence"] = spec.confidence  # goes into the file, for whoever reads it alone
    save(out / "hemorrhage.parquet", lambda path: results.rows.to_parquet(path, index=False))
    save(out / "recommendation.json", _json(recommended))
    save(out / "thresholds.json", _json({"definitions": DEFINITIONS, "curves": thresholds}))
    proposed = next_points.as_yaml(thresholds, sweeps(found))
    save(out / "next.yaml", lambda path: path.write_text(proposed, encoding="utf-8"))
    save(out / "claims.json", _json({"claims": judged}))
    save(out / "metrics.json", _json(tables.headline(found, numbers, corpora, results.suites, recommended)))
    save(out / "doctor.json", _json(doctor.as_json(examined)))
    save(out / "flags.json", _json(flags.as_json(flagged)))
    for name, table in {
        "curves": tables.curve_points(found, numbers, corpora),
        "front": plots.front_points(recommended["front"]),
        "layers": plots.layer_points(results.rows),
        "thresholds": plots.threshold_points(thresholds),
        "decoding": tables.decoding_points(numbers),
    }.items():
        save(out / f"{name}.csv", partial(table.to_csv, index=False))
    save(out / "decoding.json", _json(decoding_page.as_json(decoded)))
    save(out / "index.html", lambda path: path.write_text(page, encoding="utf-8"))
    save(out / PROVENANCE, _json(made_from))


def provenance(found: inputs.Inputs, results: rows.Results, spec: Spec, address: str) -> dict[str, Any]:
    """What the report was made from."""
    manifests = [found.base, *(variant.manifest for variant in found.variants.values())]
    for outputs in (found.evaluations, found.harness, found.programs, found.decodes, found.corrections):
        manifests += [output.manifest for output in outputs.values()]
    environments = {
        facts["id"]: dict(facts)
        for facts in (*(manifest.get("environment") for manifest in manifests), environment())
        if facts
    }
    statuses = results.rows["status"].value_counts()
    return {
        "address": address,
        "spec": dataclasses.asdict(spec),
        "environments": environments,
        "analyzed_in": environment()["id"],
        "inputs": found.directories,
        "seeds": sorted({int(seed) for seed in results.rows["seed"].dropna()}),
        "counts": {
            "variants": len(found.variants) - 1,
            "rows": len(results.rows),
            "failed_rows": int(statuses.get("failed", 0)),
            "windows": results.blocks,
        },
    }


def save(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file beside ``path`` and rename it, so that ``path`` is never half written."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    write(part)
    part.replace(path)


def _json(content: Any) -> Callable[[Path], Any]:
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.analyze")
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    for kind in (
        "checkpoints",
        "evaluations",
        "harness",
        "programs",
        "decodes",
        "corrections",
        "calibrations",
        "references",
    ):
        parser.add_argument(f"--{kind}", type=Path, nargs="*", default=[])
    parser.add_argument("--relative", type=Path)
    parser.add_argument("--aligned", choices=["yes", "no"])
    parser.add_argument("--spec", required=True)
    parser.add_argument("--address", required=True)
    arguments = parser.parse_args()
    step.start()
    spec = Spec.parse(arguments.spec)
    found = inputs.read(
        arguments.base,
        arguments.checkpoints,
        arguments.evaluations,
        arguments.decodes,
        arguments.harness,
        arguments.programs,
        arguments.corrections,
        (arguments.relative, arguments.aligned == "yes") if arguments.relative else None,
        arguments.calibrations,
        arguments.references,
    )
    analyze(arguments.out, found, spec, arguments.address)


if __name__ == "__main__":
    main()
