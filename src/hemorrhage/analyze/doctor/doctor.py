"""Model Doctor: predicted against observed damage of every variant, and the causes of what looks wrong.

Predictions are made twice, and never from what they predict: by other models' rows alone (analyze.doctor.predictor,
as before anything of this model was measured), and by those and this model's other methods. Causes are those of
hemorrhage.analyze.doctor.diagnose; where the observed damage lies far above the prediction, that is said next to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from hemorrhage.analyze.axes import failure
from hemorrhage.analyze.doctor import cases, diagnose, laws, predictor
from hemorrhage.analyze.doctor.diagnose import Diagnosis
from hemorrhage.analyze.doctor.features import Base
from hemorrhage.analyze.doctor.predictor import RETENTION, TARGETS, Score
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.rows.diagnostics import layer_estimates
from hemorrhage.analyze.rows.tables import Numbers, round_digits
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stored import Json

BY_MODEL, BY_METHOD = "model", "method"

SURPRISING = 3.0
"""Standard deviations of the prediction beyond which an observed damage is worth a word."""

ADVICE = {
    diagnose.OUTLIER: "make it again (hemorrhage invalidate {name}); where it stays, give this layer more bits",
    diagnose.EXPERTS: "calibrate on more text: raise calibrate.samples or name several corpora in calibrate.corpus",
    diagnose.MISMATCH: "set calibrate.corpus to {corpora}, the text that is evaluated, or to a list that holds it",
    diagnose.LEAKAGE: "evaluate on another corpus (evaluate.corpora): what was measured on this one flatters the model",
    diagnose.UNDERTRAINED: "train longer before compressing: damage of this model says little about a finished one",
    diagnose.DEGENERATE: "decode with {strategy}, or with a lower ratio: see the decoding section",
}


@dataclass(frozen=True)
class Retention:
    """The accuracy above chance that a variant keeps, predicted from its predicted KL, and observed."""

    variant: str
    observed: float
    predicted: float
    low: float
    high: float


@dataclass(frozen=True)
class Doctor:
    """Predictions and diagnoses of a study.

    ``left_out``: target -> predictions of its rows, by what took no part (model or method); ``scores``: the errors next
    to the laws'; ``diagnoses``: causes named; ``reason``: why nothing could be predicted, or empty.
    """

    model: str
    left_out: dict[str, list[predictor.LeftOut]]
    scores: list[Score]
    diagnoses: list[Diagnosis]
    known: list[str] = field(default_factory=list)
    retention: list[Retention] = field(default_factory=list)
    reason: str = ""


def examine(
    inputs: Inputs, rows: pd.DataFrame, numbers: Numbers, corpora: Sequence[str], spec: Spec, model: str
) -> Doctor:
    """Predict and diagnose everything that the inputs allow. Missing inputs make it say less, and never fail.

    ``numbers``: of the same rows.
    """
    measured, why = measured_rows(inputs, rows, numbers, corpora, model)
    left_out: dict[str, list[predictor.LeftOut]] = {}
    scores: list[Score] = []
    pool = predictor.experience()
    others = pool[pool["model"] != model]
    if len(measured) >= 1:
        everything = pd.concat([others, measured], ignore_index=True)
        for target in TARGETS:
            stages = [
                predictor.leave_out(everything, target, by, spec.confidence, of=model) for by in (BY_MODEL, BY_METHOD)
            ]
            left_out[target] = stages
            if target == TARGETS[0]:
                others_too = predictor.leave_out(everything, target, BY_MODEL, spec.confidence)
                scores += predictor.scores(others_too, target, "all models")
            scores += [score for stage in stages for score in predictor.scores(stage, target, model)]
    diagnoses = [
        *_of_base(inputs, numbers, others, corpora, model),
        *_of_variants(inputs, rows, corpora, left_out, spec),
        *_of_decoding(numbers),
    ]
    order = {name: index for index, name in enumerate(inputs.variants)}
    diagnoses.sort(key=lambda each: (order.get(each.subject.partition(":")[0], 0), -each.score))
    kept = predict_retention(measured, left_out, spec)
    return Doctor(model, left_out, scores, diagnoses, sorted(set(others["model"])), kept, why)


def measured_rows(
    inputs: Inputs, rows: pd.DataFrame, numbers: Numbers, corpora: Sequence[str], model: str
) -> tuple[pd.DataFrame, str]:
    """Make the rows of the study's variants with their damage, and say why there are none, where there are none."""
    base = base_of(inputs, rows, model)
    if base is None:
        return cases.table([]), "the base model's config.json is not there, or names no sizes"
    measured = []
    for variant in inputs.variants.values():
        if variant.name == BASE or failure(inputs, variant) is not None:
            continue
        parent = inputs.variants.get(variant.on)
        above = cases.made_alteration(parent.manifest) if parent and variant.on != BASE else None
        alteration = cases.made_alteration(variant.manifest, variant.layers)
        for case in cases.cases_of(alteration, base, above, base_nll(numbers, corpora)):
            ratio, kl = (numbers.get(variant.name, target, case.corpus) for target in TARGETS)
            if ratio is not None and kl is not None:
                measured.append(case.with_damage(ratio.value, kl.value, _retention(numbers, variant.name)))
    return cases.table(measured), "" if measured else "no variant of a family that is predicted was measured"


def _retention(numbers: Numbers, variant: str) -> float:
    """Return the share of the base's accuracy above chance that a variant keeps; NaN where it is not known."""
    chance, base = (numbers.get(BASE, metric, ALL_TASKS) for metric in ("chance", "mean_accuracy"))
    accuracy = numbers.get(variant, "mean_accuracy", ALL_TASKS)
    if not accuracy or not base or not chance or base.value <= chance.value:
        return math.nan
    return (accuracy.value - chance.value) / (base.value - chance.value)


def base_of(inputs: Inputs, rows: pd.DataFrame, model: str) -> Base | None:
    """Describe the base model, with the influence of its blocks as its own evaluation measured it."""
    influence = layer_estimates(rows, "block_influence")
    of_blocks = influence.loc[BASE].dropna().tolist() if BASE in influence.index else []
    try:
        return cases.base_of(model, inputs.architecture, float(inputs.base["parameters"]), of_blocks)
    except KeyError:
        return None


def base_nll(numbers: Numbers, corpora: Sequence[str]) -> dict[str, float]:
    """Map corpora to nats per token of the base model."""
    perplexities = {corpus: numbers.get(BASE, "perplexity", corpus) for corpus in corpora}
    return {corpus: math.log(perplexity.value) for corpus, perplexity in perplexities.items() if perplexity}


def predict_retention(
    measured: pd.DataFrame, left_out: Mapping[str, Sequence[predictor.LeftOut]], spec: Spec
) -> list[Retention]:
    """Predict task retention from predicted KL: isotonic over other methods' rows, with the interval of residuals."""
    if "kl_mean" not in left_out or measured[RETENTION].isna().all():
        return []
    from sklearn.isotonic import IsotonicRegression

    known = measured.dropna(subset=[RETENTION])
    retentions = []
    for row in left_out["kl_mean"][1].rows.drop_duplicates("variant").to_dict("records"):
        others = known[known["method"] != row["method"]]
        mine = known[known["variant"] == row["variant"]]
        if len(others) < 10 or len(mine) == 0:
            continue
        falling = IsotonicRegression(increasing=False, out_of_bounds="clip")
        falling.fit(predictor.ln_of(others["kl_mean"].to_numpy(float)), others[RETENTION])
        residuals = np.abs(falling.predict(predictor.ln_of(others["kl_mean"].to_numpy(float))) - others[RETENTION])
        middle, low, high = (float(falling.predict(np.log([row[name]]))[0]) for name in ("predicted", "high", "low"))
        wide = float(np.quantile(residuals, spec.confidence))
        retentions.append(Retention(row["variant"], float(mine[RETENTION].iloc[0]), middle, low - wide, high + wide))
    return retentions


def residual(observed: float, predicted: float, low: float, high: float, confidence: float) -> float:
    """Compute by how many standard deviations of ln damage an observed damage is above its prediction."""
    end = high if observed > predicted else low
    wide = abs(math.log(end / predicted)) / float(norm.ppf((1 + confidence) / 2))
    return math.log(observed / predicted) / max(wide, 0.1)


def _of_base(
    inputs: Inputs, numbers: Numbers, others: pd.DataFrame, corpora: Sequence[str], model: str
) -> Iterator[Diagnosis]:
    evaluation = inputs.evaluations.get(BASE)
    membership = (evaluation.manifest.get("membership") if evaluation else None) or {}
    for corpus, known in membership.items():
        score, seen = diagnose.leaked(known)
        if score >= 1:
            yield Diagnosis(BASE, diagnose.LEAKAGE, score, f"On {corpus} {seen}.", _advice(diagnose.LEAKAGE))
    tokens = cases.TRAINED_TOKENS.get(model, math.nan)
    for corpus, loss in base_nll(numbers, corpora).items():
        expected = expected_loss(others, corpus, inputs.architecture, float(inputs.base["parameters"]), tokens)
        if expected is not None:
            score, seen = diagnose.above_law(loss, expected)
            if score >= 1:
                yield Diagnosis(
                    BASE, diagnose.UNDERTRAINED, score, f"On {corpus} {seen}.", _advice(diagnose.UNDERTRAINED)
                )


def expected_loss(
    others: pd.DataFrame, corpus: str, architecture: Mapping[str, Any], parameters: float, tokens: float
) -> float | None:
    """Apply the Chinchilla law of models with the same vocabulary; None where no four of them are known."""
    if not math.isfinite(tokens) or "vocab_size" not in architecture:
        return None
    base = cases.base_of("", architecture, parameters)
    models = others[(others["corpus"] == corpus) & others["trained_tokens"].notna()].drop_duplicates("model")
    same = models[np.isclose(models["gained"] + models["base_nll"], math.log(base.vocabulary), atol=1e-3)]
    if len(same) < 4:
        return None
    law = laws.chinchilla(*(same[name].to_numpy(float) for name in ("in_layers", "trained_tokens", "base_nll")))
    return float(law(np.array([base.in_layers]), np.array([tokens]))[0])


def _of_variants(
    inputs: Inputs,
    rows: pd.DataFrame,
    corpora: Sequence[str],
    left_out: Mapping[str, Sequence[predictor.LeftOut]],
    spec: Spec,
) -> Iterator[Diagnosis]:
    sqnr = sqnr_of_variants(inputs, rows)
    residuals = _residuals(left_out, spec)
    for variant in inputs.variants.values():
        if variant.name == BASE or variant.failure is not None:
            continue
        surprise = residuals.get(variant.name, "")
        score, seen = diagnose.outlier_layer(sqnr.get(variant.name, {}), peers(variant, inputs, sqnr))
        if score >= 1:
            yield Diagnosis(
                variant.name,
                diagnose.OUTLIER,
                score,
                f"{seen}.{surprise}",
                _advice(diagnose.OUTLIER, name=variant.name),
            )
        calibration = variant.manifest.get("calibration")
        if not calibration:
            continue
        without = calibration.get("experts_without_tokens") or []
        score, seen = diagnose.starved(variant.layers, without)
        if score >= 1:
            yield Diagnosis(variant.name, diagnose.EXPERTS, score, f"{seen}.{surprise}", _advice(diagnose.EXPERTS))
        nearest = [diagnose.foreign(inputs.calibration, text) for text in inputs.texts.values()]
        if len(inputs.calibration) and nearest:
            score, seen = min(nearest)
            if score >= 1:
                advice = _advice(diagnose.MISMATCH, corpora=" or ".join(corpora))
                on = ", ".join(calibration["corpora"])
                yield Diagnosis(
                    variant.name, diagnose.MISMATCH, score, f"Calibrated on {on}: {seen}.{surprise}", advice
                )


def _residuals(left_out: Mapping[str, Sequence[predictor.LeftOut]], spec: Spec) -> dict[str, str]:
    """Write, by variant, a sentence about a damage that is far above what its other methods predict."""
    sentences: dict[str, str] = {}
    for each in left_out.get("kl_mean", [])[1:]:
        for row in each.rows.to_dict("records"):
            z = residual(row["observed"], row["predicted"], row["low"], row["high"], spec.confidence)
            if z > SURPRISING:
                sentences[row["variant"]] = (
                    f" Its KL on {row['corpus']} is {row['observed']:.2g} nats, where {row['predicted']:.2g} "
                    f"were predicted (z = {z:.1f})."
                )
    return sentences


def sqnr_of_variants(inputs: Inputs, rows: pd.DataFrame) -> dict[str, diagnose.Sqnr]:
    """Collect the SQNR of layers, by variant, where layers of a type are altered alike."""
    blocks = layer_estimates(rows, "local_sqnr")
    return {
        variant.name: diagnose.sqnr_by_type(variant.layers, _blocks(variant, blocks))
        for variant in inputs.variants.values()
        if variant.name != BASE and variant.failure is None and _alters_alike(variant)
    }


def _alters_alike(variant: Variant) -> bool:
    """Tell whether layers of a type are altered alike.

    What was added may be silent on purpose, what was taken out leaves gaps, a budget gives each layer bits of its own,
    and a control harms layers at random.
    """
    of_its_own = variant.manifest.get("severity_field") == "budget" or variant.settings.get("mix")
    return variant.axis not in ("added", "removed") and not variant.is_control and not of_its_own


def peers(variant: Variant, inputs: Inputs, sqnr: Mapping[str, diagnose.Sqnr]) -> list[diagnose.Sqnr]:
    """List the SQNR of other variants of a variant's family."""
    names = [name for name in sqnr if name != variant.name and inputs.variants[name].family == variant.family]
    return [sqnr[name] for name in names]


def _blocks(variant: Variant, sqnr: pd.DataFrame) -> dict[int, float]:
    """SQNR of each block on clean input; none where it was not measured."""
    if variant.name not in sqnr.index:
        return {}
    values = sqnr.loc[variant.name].dropna()
    return {int(str(block)): float(value) for block, value in values.items()}


def _of_decoding(numbers: Numbers) -> Iterator[Diagnosis]:
    datasets = numbers.datasets("loop_rate", strategy=True)
    strategies = numbers.strategies("loop_rate")
    for variant in numbers.decoded_variants():
        for dataset in datasets:
            seen = {
                strategy: (
                    numbers.get(variant, "loop_rate", dataset, strategy),
                    numbers.get(variant, "rep_4", dataset, strategy),
                )
                for strategy in strategies
            }
            known = {name: (loops.value, rep.value) for name, (loops, rep) in seen.items() if loops and rep}
            if not known:
                continue
            best = min(known, key=lambda name: sum(known[name]))
            for strategy, (loops, repeated) in known.items():
                score, evidence = diagnose.degenerate(loops, repeated, *known[best])
                if score >= 1:
                    subject = f"{variant}: {strategy}"
                    advice = _advice(diagnose.DEGENERATE, strategy=best)
                    yield Diagnosis(subject, diagnose.DEGENERATE, score, f"On {dataset} {evidence}.", advice)


def _advice(cause: str, **names: str) -> str:
    return ADVICE[cause].format(**names)


def as_json(doctor: Doctor) -> dict[str, Json]:
    """Return the content of doctor.json."""
    return {
        "model": doctor.model,
        "learned_from": doctor.known,
        "reason": doctor.reason,
        "errors": [_with_digits(asdict(score)) for score in doctor.scores],
        "predictions": [
            {
                "target": target,
                "left_out": stage.by,
                **{key: row[key] for key in ("variant", "corpus", "learner")},
                **{key: round_digits(row[key]) for key in ("observed", "predicted", "low", "high")},
            }
            for target, stages in doctor.left_out.items()
            for stage in stages
            for row in stage.rows.to_dict("records")
        ],
        "retention": [_with_digits(asdict(retention)) for retention in doctor.retention],
        "diagnoses": diagnose.as_json(doctor.diagnoses),
    }


def _with_digits(fields: Mapping[str, Json]) -> dict[str, Json]:
    return {key: round_digits(value) if isinstance(value, float) else value for key, value in fields.items()}
