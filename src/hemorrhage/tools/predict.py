"""Damage predicted before it is measured, of every variant that is not evaluated yet: ``hemorrhage predict``.

Learned from the runs that come with the bench and from this folder's own: reports/hemorrhage.parquet, where it is of
the same base model, and the checkpoints in data/. A checkpoint that was made improves its prediction, since its
layers.json says how far each layer moved. Nothing is computed on the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import pandas as pd

from hemorrhage.analyze.doctor import cases, predictor
from hemorrhage.analyze.doctor.features import Base
from hemorrhage.analyze.doctor.laws import CAP, FLOOR
from hemorrhage.analyze.doctor.predictor import TARGETS
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.command import CANNOT_TELL, YES, CommandError, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study import params as config
from hemorrhage.study.plan import REPORTS, Plan


@dataclass(frozen=True)
class Interval:
    """A predicted value between ``low`` and ``high``."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Predicted:
    """The damage of a variant: ``perplexity`` times the base's, ``kl`` in nats per token, and what the budget says."""

    perplexity: Interval
    kl: Interval
    budget: str


@dataclass(frozen=True)
class Quality:
    """Quality of a fit on what was left out of it: the ``factor`` it was off by, in the mean over ``left_out``."""

    target: str
    learner: str
    rows: int
    models: int
    left_out: str
    factor: float


@dataclass(frozen=True)
class Predictions:
    """Predictions on a corpus of the variants that are ``waiting`` among ``planned``.

    ``unsupported`` are those whose families no model predicts, ``refused`` those beyond what was learned.
    """

    corpus: str
    confidence: float
    planned: int
    waiting: list[str]
    variants: dict[str, Predicted]
    unsupported: list[str]
    refused: list[str]
    quality: list[Quality]


def predict(plan: Plan, corpus: str, confidence: float) -> Predictions:
    """Predict every variant that is not evaluated. Raises CommandError where the base model's sizes are not known."""
    base, name = base_of(plan), model_name(plan)
    rows = read_earlier(plan)
    nll = base_nll(rows, plan, name)
    pool = predictor.experience()
    measured_here = measured_rows(plan, base, rows, nll) if rows is not None else cases.table([])
    others = pool[~pool["variant"].isin(measured_here["variant"]) | (pool["model"] != name)]
    known = pd.concat([others, measured_here], ignore_index=True)
    waiting = [variant for variant in plan.variants if not is_evaluated(plan, variant)]
    here = {corpus: nll.get(corpus, math.nan)}
    asked = cases.table([row for variant in waiting for row in cases_of(plan, variant, base, here)])
    variants, measured = {}, []
    if len(asked):
        groups, learners = predictor.groups_for(known, name), predictor.learners_for(known, name)
        fitted = {target: predictor.fit(known, target, groups, learners) for target in TARGETS}
        budget = plan.params.analyze.budget.model_dump(exclude_none=True)
        variants = dict(_predicted(asked, known, fitted, confidence, budget))
        measured = list(quality(known, fitted, name))
    supported = set(asked["variant"])
    unsupported = [variant for variant in waiting if variant not in supported]
    refused = [variant for variant in waiting if variant in supported and variant not in variants]
    return Predictions(corpus, confidence, len(plan.variants), waiting, variants, unsupported, refused, measured)


def _predicted(
    asked: pd.DataFrame,
    known: pd.DataFrame,
    fitted: Mapping[str, predictor.Fitted],
    confidence: float,
    budget: Mapping[str, float],
) -> Iterator[tuple[str, Predicted]]:
    """Predict by the learner, beyond what it knows by the published law; leave out what neither can say."""
    learned = {target: fit.predict(asked, confidence) for target, fit in fitted.items()}
    law = {target: predictor.by_law(known, target, asked, confidence) for target in fitted}
    far = predictor.beyond(known, asked)
    for row, variant in enumerate(asked["variant"]):
        of = law if far[row] else learned
        if not all(math.isfinite(each.value[row]) for each in of.values()):
            continue
        ratio, kl = (
            (each.value[row], each.low[row], each.high[row]) for each in (of["ln_perplexity_ratio"], of["kl_mean"])
        )
        damage = {
            "perplexity": Interval(*(math.exp(value) for value in ratio)),
            "kl": Interval(*(float(value) for value in kl)),
        }
        yield variant, Predicted(damage["perplexity"], damage["kl"], against(damage, budget))


def against(damage: Mapping[str, Interval], budget: Mapping[str, float]) -> str:
    """Say whether predicted damage is ``past`` the budget or ``inside``, or that the interval decides neither."""
    limits = {key: limit for key, limit in budget.items() if key in damage}
    if not limits:
        return "no limit"
    past = [key for key, limit in limits.items() if damage[key].low > limit]
    if past:
        return f"past ({', '.join(past)})"
    if all(damage[key].high <= limit for key, limit in limits.items()):
        return "inside"
    open_limits = [key for key, limit in limits.items() if damage[key].low <= limit < damage[key].high]
    return f"no useful forecast ({', '.join(open_limits)})"


def quality(known: pd.DataFrame, fitted: Mapping[str, predictor.Fitted], name: str) -> Iterator[Quality]:
    """Say how good the predictor was on what it was not shown."""
    left_out = "methods of known models" if name in set(known["model"]) else "whole models"
    for target, fit in fitted.items():
        factor = math.exp(fit.mean_errors[fit.name])
        yield Quality(target, fit.name, len(known), known["model"].nunique(), left_out, factor)


def as_text(predictions: Predictions) -> Iterator[str]:
    """Write a line for each variant, and how good the predictions are."""
    count = f"{len(predictions.waiting)} of {predictions.planned} variants are not evaluated"
    yield f"{count}; predicted on {predictions.corpus}, {100 * predictions.confidence:g} % intervals"
    if predictions.variants:
        yield f"{'variant':28s} {'perplexity, times base':>26s} {'KL, nats per token':>26s}  budget"
    for variant, each in predictions.variants.items():
        yield f"{variant:28s} {each.perplexity!s:>26s} {each.kl!s:>26s}  {each.budget}"
    for fit in predictions.quality:
        yield (
            f"{fit.target}: {fit.learner}, fitted on {fit.rows} rows of {fit.models} models; with {fit.left_out} left "
            f"out it was off by a factor of {fit.factor:.1f} (between {FLOOR:g} and {CAP:g} nats)"
        )
    if predictions.refused:
        yield (
            f"no prediction for {', '.join(predictions.refused)}: beyond what was learned in size, bits or share, "
            "and the published law says nothing of them"
        )
    if predictions.unsupported:
        yield f"no prediction for {', '.join(predictions.unsupported)} (unsupported family)"


def base_of(plan: Plan) -> Base:
    """Describe the base model by what is known before anything runs. Raises CommandError."""
    manifest = Path(plan.manifest("base", "base"))
    architecture = config.architecture(plan.params)
    if manifest.is_file():
        architecture = json.loads((manifest.parent / "config.json").read_text(encoding="utf-8"))
        parameters = float(read_manifest(manifest.parent)["parameters"])
    elif architecture is None or "vocab_size" not in architecture:
        raise CommandError("the base model's sizes are not known; run `snakemake calibrated` first", CANNOT_TELL)
    else:
        parameters = float(parameters_of(architecture))
    return cases.base_of(model_name(plan), architecture, parameters, influence_of(plan))


def parameters_of(architecture: config.ModelConfig) -> int:
    """Count the parameters of a Llama with this config.json, without its norms."""
    width, between = architecture["hidden_size"], architecture["intermediate_size"]
    heads = architecture["num_attention_heads"]
    shared = architecture.get("num_key_value_heads", heads) * (width // heads)
    block = 2 * width * width + 2 * width * shared + 3 * width * between
    embeddings = architecture["vocab_size"] * width * (1 if architecture.get("tie_word_embeddings", True) else 2)
    return int(architecture["num_hidden_layers"] * block + embeddings)


def influence_of(plan: Plan) -> list[float]:
    """Read the calibration's block influence; empty where nothing was calibrated."""
    for manifest in plan.manifests("calibrations"):
        file = Path(manifest).with_name("influence.json")
        if file.is_file():
            return list(json.loads(file.read_text(encoding="utf-8"))["block_influence"])
    return []


def model_name(plan: Plan) -> str:
    """Return the base model's name in reports."""
    model = plan.params.model.model_dump(mode="json")
    return str(model.get("name") or model.get("id") or Path(model.get("path", "base model")).name)


def read_earlier(plan: Plan) -> pd.DataFrame | None:
    """Read the rows of the last report, where it is of this base model."""
    try:
        made_from = json.loads((REPORTS / "provenance.json").read_text(encoding="utf-8"))["inputs"]["base"]
        rows = pd.read_parquet(REPORTS / "hemorrhage.parquet")
    except (FileNotFoundError, KeyError, ValueError):
        return None
    return rows if made_from == [f"base/{plan.address('base', 'base')}"] else None


def base_nll(rows: pd.DataFrame | None, plan: Plan, name: str) -> dict[str, float]:
    """Map corpus -> nats per token of the base model, from earlier runs; empty where there are none."""
    pool = predictor.experience()
    of_model = pool[pool["model"] == name].drop_duplicates("corpus")
    known = dict(zip(of_model["corpus"], map(float, of_model["base_nll"]), strict=True))
    if rows is not None:
        numbers = Numbers(rows)
        for corpus in plan.params.evaluate.corpora:
            perplexity = numbers.get("base", "perplexity", corpus)
            if perplexity:
                known[corpus] = math.log(perplexity.value)
    return known


def measured_rows(plan: Plan, base: Base, rows: pd.DataFrame, nll: Mapping[str, float]) -> pd.DataFrame:
    """Make rows of the variants of this plan that were measured."""
    numbers = Numbers(rows)
    measured = []
    for variant in plan.variants:
        for case in cases_of(plan, variant, base, nll):
            ratio, kl = (numbers.get(variant, target, case.corpus) for target in TARGETS)
            if ratio and kl:
                measured.append(case.with_damage(ratio.value, kl.value))
    return cases.table(measured)


def cases_of(plan: Plan, variant: str, base: Base, nll: Mapping[str, float]) -> list[cases.Case]:
    """Make a variant's cases, by its checkpoint where that was made, else by params.yaml."""
    chosen = plan.variants[variant]
    corpora = plan.params.calibrate.corpora
    parent = None if chosen.on is None else cases.planned_alteration(plan.variants[chosen.on], corpora)
    folder = Path(plan.checkpoint(variant)).parent
    alteration = cases.planned_alteration(chosen, corpora)
    if (folder / "layers.json").is_file():
        layers = json.loads((folder / "layers.json").read_text(encoding="utf-8"))
        alteration = cases.made_alteration(cast(CheckpointManifest, read_manifest(folder)), layers)
    return cases.cases_of(alteration, base, parent, nll)


def is_evaluated(plan: Plan, variant: str) -> bool:
    """Tell whether a variant's evaluation is done."""
    return Path(plan.manifest("evaluations", variant)).is_file()


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "predict",
        "Predict the damage of every variant of params.yaml that is not evaluated yet: perplexity and KL with\n"
        "intervals, what they mean for analyze.budget, and how good such predictions were on what was left out.",
        ["hemorrhage predict", "hemorrhage predict --corpus code --json"],
        {CANNOT_TELL: "the base model's sizes are not known yet"},
    )
    made.add_argument("--corpus", metavar="NAME", help="one of evaluate.corpora; default: the first")
    made.add_argument("--json", action="store_true", help="the predictions as JSON")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print the predictions."""
    arguments = parser().parse_args(argv)
    plan = Plan.read()
    corpora = plan.params.evaluate.corpora
    corpus = arguments.corpus or corpora[0]
    if corpus not in corpora:
        raise CommandError(f"--corpus: {corpus!r} is not evaluated; allowed: {', '.join(corpora)}")
    predicted = predict(plan, corpus, plan.params.analyze.confidence)
    print(json_text(asdict(predicted)) if arguments.json else "\n".join(as_text(predicted)))
    return YES
