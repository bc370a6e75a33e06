"""Damage foretold before it is measured: for every variant that params.yaml names and that is not evaluated yet.

    python -m hemorrhage.tools.predict [--corpus NAME]

Learned from the runs that come with the bench and from this folder's own: reports/hemorrhage.parquet, where it is of
the same base model, and the checkpoints that lie in data/. A checkpoint that is there makes its prediction better,
since its layers.json says how far each layer moved. Nothing is computed on the model.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hemorrhage.analyze.doctor import cases, predictor
from hemorrhage.analyze.doctor.features import Base
from hemorrhage.analyze.doctor.laws import CAP, FLOOR
from hemorrhage.analyze.doctor.predictor import RETENTION, TARGETS
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.study import params as config
from hemorrhage.study.plan import REPORTS, Plan

KEYS = {"perplexity": "ln_perplexity_ratio", "kl": "kl_mean"}
"""Limits of analyze.budget that can be foretold -> what is predicted."""


def predict(plan: Plan, corpus: str, confidence: float) -> str:
    """The table, as text. Raises config.ConfigError where the base model's sizes are not known yet."""
    base, name = base_of(plan), model_name(plan)
    rows = earlier(plan, name)
    nll = base_nll(rows, plan, name)
    pool = predictor.experience()
    own = own_rows(plan, base, rows, nll) if rows is not None else cases.table([])
    known = pd.concat([pool[~pool["variant"].isin(own["variant"]) | (pool["model"] != name)], own], ignore_index=True)
    waiting = [variant for variant in plan.variants if not evaluated(plan, variant)]
    here = {corpus: nll.get(corpus, math.nan)}
    asked = cases.table([row for variant in waiting for row in asked_of(plan, variant, base, here)])
    count = f"{len(waiting)} of {len(plan.variants)} variants are not evaluated"
    lines = [f"{count}; foretold on {corpus}, {100 * confidence:g} % intervals"]
    if len(asked):
        groups, learners = predictor.groups_for(known, name), predictor.learners_for(known, name)
        fitted = {target: predictor.fit(known, target, groups, learners) for target in TARGETS}
        found = {target: one.predict(asked, confidence) for target, one in fitted.items()}
        lines += table(plan, asked, found)
        lines += quality(known, fitted, name)
    silent = [variant for variant in waiting if variant not in set(asked["variant"])]
    if silent:
        lines.append(f"nothing is foretold of {', '.join(silent)}: their families are not predicted")
    return "\n".join(lines)


def table(plan: Plan, asked: pd.DataFrame, found: Mapping[str, predictor.Prediction]) -> Iterator[str]:
    """A line for each variant: times the base's perplexity, KL, and what that means for the budget."""
    budget = plan.params.analyze.budget.model_dump(exclude_none=True)
    yield f"{'variant':28s} {'perplexity, times base':>26s} {'KL, nats per token':>26s}  budget"
    for place, variant in enumerate(asked["variant"]):
        ratio, kl = (
            (one.value[place], one.low[place], one.high[place])
            for one in (found["ln_perplexity_ratio"], found["kl_mean"])
        )
        factor = tuple(math.exp(value) for value in ratio)
        verdict = judged({"perplexity": factor, "kl": kl}, budget)
        yield f"{variant:28s} {_range(factor):>26s} {_range(kl):>26s}  {verdict}"


def judged(found: Mapping[str, tuple[float, ...]], budget: Mapping[str, float]) -> str:
    """``past`` the budget, ``inside`` or unsure, of what can be foretold: value, low and high of each limit."""
    limits = {key: limit for key, limit in budget.items() if key in found}
    if not limits:
        return "no limit"
    past = [key for key, limit in limits.items() if found[key][1] > limit]
    if past:
        return f"past it ({', '.join(past)})"
    if all(found[key][2] <= limit for key, limit in limits.items()):
        return "inside"
    likely = [key for key, limit in limits.items() if found[key][0] > limit]
    return f"likely past ({', '.join(likely)})" if likely else "likely inside"


def quality(known: pd.DataFrame, fitted: Mapping[str, predictor.Fitted], name: str) -> Iterator[str]:
    """How good the predictor was on what it was not shown."""
    there = name in set(known["model"])
    what = "methods of known models" if there else "whole models"
    for target, one in fitted.items():
        factor = math.exp(one.mean_errors[one.name])
        yield (
            f"{target}: {one.name}, learned from {len(known)} rows of {known['model'].nunique()} models; with {what} "
            f"left out it was off by a factor of {factor:.1f} (between {FLOOR:g} and {CAP:g} nats)"
        )


def base_of(plan: Plan) -> Base:
    """The base model, from what is known before anything runs."""
    manifest = Path(plan.manifest("base", "base"))
    architecture = config.architecture(plan.params)
    if manifest.is_file():
        architecture = json.loads((manifest.parent / "config.json").read_text(encoding="utf-8"))
        parameters = float(read_manifest(manifest.parent)["parameters"])
    elif architecture is None or "vocab_size" not in architecture:
        raise config.ConfigError("the base model's sizes are not known; run `snakemake calibrated` first")
    else:
        parameters = float(weights_of(architecture))
    return cases.base_of(model_name(plan), architecture, parameters, influence_of(plan))


def weights_of(architecture: Mapping[str, Any]) -> int:
    """Parameters of a Llama with this config.json, without its norms."""
    width, between = architecture["hidden_size"], architecture["intermediate_size"]
    heads = architecture["num_attention_heads"]
    shared = architecture.get("num_key_value_heads", heads) * (width // heads)
    block = 2 * width * width + 2 * width * shared + 3 * width * between
    embeddings = architecture["vocab_size"] * width * (1 if architecture.get("tie_word_embeddings", True) else 2)
    return int(architecture["num_hidden_layers"] * block + embeddings)


def influence_of(plan: Plan) -> list[float]:
    """The calibration's block influence, where it was calibrated."""
    for manifest in plan.manifests("calibrations"):
        file = Path(manifest).with_name("influence.json")
        if file.is_file():
            return list(json.loads(file.read_text(encoding="utf-8"))["block_influence"])
    return []


def model_name(plan: Plan) -> str:
    """What reports call the base model."""
    model = plan.params.model.model_dump(mode="json")
    return str(model.get("name") or model.get("id") or Path(model.get("path", "base model")).name)


def earlier(plan: Plan, name: str) -> pd.DataFrame | None:
    """Rows of the last report, where it is of this base model."""
    try:
        made_from = json.loads((REPORTS / "provenance.json").read_text(encoding="utf-8"))["inputs"]["base"]
        rows = pd.read_parquet(REPORTS / "hemorrhage.parquet")
    except (FileNotFoundError, KeyError, ValueError):
        return None
    return rows if made_from == [f"base/{plan.address('base', 'base')}"] else None


def base_nll(rows: pd.DataFrame | None, plan: Plan, name: str) -> dict[str, float]:
    """Corpus -> nats per token of the base model, from earlier runs; nothing where there are none."""
    pool = predictor.experience()
    known = pool[pool["model"] == name].drop_duplicates("corpus").set_index("corpus")["base_nll"].to_dict()
    if rows is not None:
        numbers = Numbers(rows)
        for corpus in plan.params.evaluate.corpora:
            found = numbers.get("base", "perplexity", corpus)
            if found:
                known[corpus] = math.log(found.value)
    return known


def own_rows(plan: Plan, base: Base, rows: pd.DataFrame, nll: Mapping[str, float]) -> pd.DataFrame:
    """Rows of variants of this plan that were measured."""
    numbers = Numbers(rows)
    found = []
    for variant in plan.variants:
        for row in asked_of(plan, variant, base, nll):
            targets = {target: numbers.get(variant, target, row["corpus"]) for target in TARGETS}
            if all(targets.values()):
                values = {target: one.value for target, one in targets.items() if one}
                found.append({**row, **values, RETENTION: math.nan})
    return cases.table(found)


def asked_of(plan: Plan, variant: str, base: Base, nll: Mapping[str, float]) -> list[dict[str, Any]]:
    """A variant's rows, by its checkpoint where that was made, else by params.yaml."""
    chosen = plan.variants[variant]
    corpora = plan.params.calibrate.corpora
    parent = None if chosen.on is None else cases.planned(plan.variants[chosen.on], corpora)
    folder = Path(plan.checkpoint(variant)).parent
    alteration = cases.planned(chosen, corpora)
    if (folder / "layers.json").is_file():
        layers = json.loads((folder / "layers.json").read_text(encoding="utf-8"))
        alteration = cases.altered(read_manifest(folder), layers)
    return cases.asked(alteration, base, parent, nll)


def evaluated(plan: Plan, variant: str) -> bool:
    """Whether a variant's evaluation is there."""
    return Path(plan.manifest("evaluations", variant)).is_file()


def _range(values: tuple[float, ...]) -> str:
    middle, low, high = values
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m hemorrhage.tools.predict", description="damage before it is measured"
    )
    parser.add_argument("--corpus", help="one of evaluate.corpora; the first where none is named")
    arguments = parser.parse_args()
    try:
        plan = Plan.read()
        corpora = plan.params.evaluate.corpora
        corpus = arguments.corpus or corpora[0]
        if corpus not in corpora:
            raise config.ConfigError(f"--corpus: {corpus!r} is not evaluated; allowed: {', '.join(corpora)}")
        print(predict(plan, corpus, plan.params.analyze.confidence))
    except config.ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
