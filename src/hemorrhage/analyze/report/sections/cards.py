"""Model cards of the variants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.report.card import BudgetVerdict, Measurements, engines, write_card
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.shipping import Size


def cards(study: Study) -> dict[str, str]:
    """Return the model card of each variant that was made: first the recommended one, or the one nearest to it."""
    inputs, overall = study.inputs, study.recommended.overall
    names = [name for name, variant in inputs.variants.items() if name != BASE and not variant.failure]
    names.sort(key=lambda name: name != (overall.variant or overall.nearest))
    identities = {Path(identity).parent.name: identity for identity in inputs.directories["checkpoints"]}
    base = inputs.base.get("model") or {}
    measurements = Measurements(
        confidence=study.spec.confidence,
        verdicts={verdict.variant.name: BudgetVerdict(verdict.inside, verdict.checks) for verdict in study.verdicts},
        report=study.provenance["address"],
    )
    # Once for all: a card looks through the rows that it is given.
    rows = dict(tuple(study.rows.groupby("variant", sort=False)))
    nothing = study.rows.iloc[:0]
    # A study that was read back has no config.json: what loads a variant stands in its verdict.
    sizes = {verdict.variant.name: verdict.size for verdict in study.verdicts}
    return {
        name: write_card(
            name,
            inputs.variants[name].manifest,
            identities[name],
            base,
            replace(measurements, rows=rows.get(name, nothing)),
            _loads(sizes[name])
            if name in sizes
            else engines(inputs.configs.get(name, {}), inputs.variants[name].manifest),
        )
        for name in names
    }


def _loads(size: Size) -> str:
    if not size.engine:
        return f"Nothing loads it: {size.hindrance}."
    return " ".join(filter(None, (f"Loads in {size.engine}.", size.refusal)))
