"""Step ``rows``: everything with numbers, from rows with intervals to verdicts. The page is drawn from what it leaves.

    python -m hemorrhage.analyze OUT --outputs KIND DIR... [--outputs KIND DIR...]... [--aligned] [--several]
        --spec JSON --address A

KIND is a kind of output (hemorrhage.study.kinds); ``base`` has to be among them. ``--aligned``: the second model of the
family that was decoded, of kind ``sibling_models``, is the aligned one. ``--several``: the study has other models, so
that one whose training diverged is a gap, with nothing but the reason. ``spec``: ``{"resamples": int, "confidence":
float, "seed": int, "budget": {limit: float}}``. Every file of OUT appears whole; ``provenance.json``, which says at
which address the numbers were made, is removed first and written last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hemorrhage.analyze import study, unmade
from hemorrhage.analyze.axes import sweeps
from hemorrhage.analyze.curves import entries, next_points
from hemorrhage.analyze.curves.definitions import DEFINITIONS, find_thresholds
from hemorrhage.analyze.doctor import doctor
from hemorrhage.analyze.inputs import Inputs, model_name, read
from hemorrhage.analyze.manifests import Manifest
from hemorrhage.analyze.rows import blocks, headline, mitigations, plots, tables
from hemorrhage.analyze.rows import results as rows
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts import causes, claims, decoding, flags, mapping, ranking, shipping
from hemorrhage.analyze.verdicts.evidence import Evidence
from hemorrhage.runtime import lacking, step
from hemorrhage.runtime.artifact import environment, whole
from hemorrhage.runtime.aside import Aside


def analyze(out: Path, inputs: Inputs, spec: Spec, address: str) -> Study:
    """Write everything with numbers into ``out``."""
    results = rows.build(inputs, spec)
    corpora, model = list(results.blocks), model_name(inputs.base)
    numbers = results.numbers
    # A third of the time, and nothing waits for it.
    examination = Aside(doctor.examine, inputs, results.rows, numbers, corpora, spec, model)
    thresholds = find_thresholds(inputs, results, spec)
    flagged = flags.find(inputs, results.rows, numbers, corpora)
    verdicts = shipping.verdicts(inputs, results.rows, spec)
    recommended = shipping.recommend(verdicts, results, inputs, spec)
    decoded = decoding.find(inputs, thresholds, verdicts, spec)
    evidence = Evidence(inputs, results, numbers, thresholds, spec, corpora)
    assessments, effects, doubled = claims.judge(evidence), mapping.effects(evidence), causes.causes(evidence)
    ranked, made_from = ranking.rank(inputs, results, numbers, spec), provenance(inputs, results, spec, address)
    sums, inputs_kept = blocks.block_sums(inputs, results.suites), study.strip_tables(inputs)
    examined = examination.result()
    analyzed = Study(
        inputs=inputs_kept,
        rows=results.rows,
        blocks=results.blocks,
        suites=[dataclasses.replace(suite, outputs=study.strip_outputs(suite.outputs)) for suite in results.suites],
        trials=[mitigations.summarize(trial, spec) for trial in results.trials],
        thresholds=thresholds,
        flags=flagged,
        verdicts=verdicts,
        recommended=recommended,
        decoded=decoded,
        examined=examined,
        claims=assessments,
        mapping=effects,
        doubled=doubled,
        spec=spec,
        provenance=made_from,
        ranking=ranked,
    )

    out.mkdir(parents=True, exist_ok=True)
    (out / study.PROVENANCE).unlink(missing_ok=True)
    # Attributes are stored in the file, for whoever reads it alone.
    results.rows.attrs["confidence"] = spec.confidence
    results.rows.attrs["candidates"] = shipping.candidates(verdicts)
    results.rows.attrs["engines"] = {
        verdict.variant.name: {"loads": verdict.size.engine, "hindrance": verdict.size.hindrance}
        for verdict in verdicts
    }
    save(out / study.ROWS, lambda path: results.rows.to_parquet(path, index=False))
    save(out / "blocks.parquet", lambda path: sums.to_parquet(path, index=False))
    save(out / "recommendation.json", _json(shipping.as_json(recommended, verdicts)))
    save(out / "thresholds.json", _json(entries.as_json(thresholds, DEFINITIONS)))
    proposed = next_points.as_yaml(thresholds, sweeps(inputs))
    save(out / "next.yaml", lambda path: path.write_text(proposed, encoding="utf-8"))
    described = claims.model_of(evidence, model)
    save(out / "claims.json", _json(claims.as_json(assessments, effects, doubled, described)))
    inside, ship = recommended.overall.inside, recommended.headline()
    metrics = tables.headline(inputs, numbers, corpora, results.suites, inside, ship)
    save(out / "metrics.json", _json(metrics))
    save(out / "headline.json", _json(headline.headline(metrics, inputs), sort_keys=False))
    save(out / "doctor.json", _json(doctor.as_json(examined)))
    save(out / "flags.json", _json(flags.as_json(flagged)))
    for name, table in {
        "curves": tables.curve_points(inputs, numbers, corpora),
        "front": shipping.front_points(recommended),
        "layers": plots.layer_points(results.rows),
        "thresholds": entries.threshold_points(thresholds),
        "decoding": tables.decoding_points(numbers),
    }.items():
        save(out / f"{name}.csv", partial(table.to_csv, index=False))
    save(out / "decoding.json", _json(decoding.as_json(decoded)))
    save(out / study.REST, _json(study.as_json(analyzed), sort_keys=False, indent=None))
    save(out / study.PROVENANCE, _json(analyzed.provenance, sort_keys=False))
    return analyzed


def provenance(inputs: Inputs, results: rows.Results, spec: Spec, address: str) -> study.Provenance:
    """Say what the report was made from."""
    manifests: list[Manifest] = [inputs.base, *(variant.manifest for variant in inputs.variants.values())]
    measured = (inputs.evaluations, inputs.harness, inputs.code_tasks, inputs.decodes, inputs.corrections)
    for outputs in (*measured, *inputs.served.values()):
        manifests += [output.manifest for output in outputs.values()]
    environments = {
        made_in["id"]: dict(made_in)
        for made_in in (*(manifest.get("environment") for manifest in manifests), environment())
        if made_in
    }
    statuses = results.rows["status"].value_counts()
    return {
        "address": address,
        "spec": dataclasses.asdict(spec),
        "environments": environments,
        "analyzed_in": environment()["id"],
        "inputs": inputs.directories,
        "seeds": sorted({int(seed) for seed in results.rows["seed"].dropna()}),
        "counts": {
            "variants": len(inputs.variants) - 1,
            "rows": len(results.rows),
            "failed_rows": int(statuses.get("failed", 0)),
            "windows": results.blocks,
        },
    }


def save(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file next to ``path`` and rename it, so that ``path`` is never half written."""
    with whole(path) as unfinished:
        write(unfinished)


def _json(content: Any, sort_keys: bool = True, indent: int | None = 2) -> Callable[[Path], Any]:
    text = json.dumps(content, indent=indent, sort_keys=sort_keys, allow_nan=False) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")


def main() -> None:
    """Run the step; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.analyze")
    parser.add_argument("out", type=Path)
    parser.add_argument("--outputs", nargs="+", action="append", required=True, metavar=("KIND", "DIR"))
    parser.add_argument("--aligned", action="store_true", help="the second model of the family is the aligned one")
    parser.add_argument("--several", action="store_true", help="the study has other models")
    parser.add_argument("--spec", required=True)
    parser.add_argument("--address", required=True)
    arguments = parser.parse_args()
    step.start()
    spec = Spec.parse(arguments.spec)
    given = {kind: [Path(path) for path in paths] for kind, *paths in arguments.outputs}
    reason = lacking.reason(given["base"][0])
    if reason is not None:
        if not arguments.several:
            raise step.InputError(f"there is no model to study: {reason}")
        unmade.write(arguments.out, reason, arguments.address)
        return
    analyze(arguments.out, read(given, arguments.aligned), spec, arguments.address)


if __name__ == "__main__":
    main()
