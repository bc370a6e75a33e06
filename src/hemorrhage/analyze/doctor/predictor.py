"""Damage of a variant before it is evaluated: learned from earlier runs, with intervals, against scaling laws.

Damage is learned as ln of nats between FLOOR and CAP. Four learners: ridge regression, isotonic regression on the best
known noise alone, boosted trees that never fall as noise or the removed share grow, and such trees on top of a scaling
law. For a new model it is their median; for a model of the training rows that one of the first three which does best
when groups of them are left out. The interval is the CV+ of those groups (Barber et al. 2021, arXiv 1905.02928): the
quantiles of each left-out model's prediction, less and plus the error it made on its own group. Groups are whole models
where the predicted model is new, and methods of a model otherwise: errors are those of a new model, or of a new method.

A learner knows nothing of models far larger than those it saw, of families it never saw, of bits and shares outside of
theirs (``beyond``). There the published law speaks, which was fitted on large models and there has the smaller error;
where that says nothing, there is no prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemorrhage.analyze.doctor import laws
from hemorrhage.analyze.doctor.features import COLUMNS, OF_BITS, OF_DATA, OF_SIZE, K, equivalent_bits
from hemorrhage.analyze.doctor.laws import CAP, FLOOR
from hemorrhage.analyze.stats.bootstrap import Floats

EXPERIENCE = Path(__file__).with_name("experience.csv")
"""Rows of earlier runs: see experience.json for what made them."""

TARGETS = ("ln_perplexity_ratio", "kl_mean")
IDENTITY = ("model", "variant", "sweep", "method", "family", "axis", "on", "corpus")
UNCHANGED = "unchanged"
"""Whether a method adds something and changes nothing."""

OF_LAWS = ("in_layers", "trained_tokens", "bits", "share")
RETENTION = "retention"
"""Accuracy above chance, over the base's."""

FOLDS = 5
"""Groups that the methods of known models are spread over."""

REACH = 10.0
"""A model so many times larger than the largest known one, or smaller than the smallest, is beyond what was learned."""

SLACK = {"bits": 0.5, "share": 0.05}
"""Beyond the known bits and shares by so much is still near."""

LAW = "published law"

PENALTY = 3.0
"""Of the ridge, on standardised columns."""

Labels: TypeAlias = npt.NDArray[np.str_]
"""The group of each row."""

Learner: TypeAlias = Callable[[Floats], Floats]
"""Columns float64 [rows, COLUMNS] -> ln damage."""


def experience() -> pd.DataFrame:
    """Read the rows that come with the bench: columns IDENTITY, OF_LAWS, COLUMNS, TARGETS and RETENTION."""
    return pd.read_csv(EXPERIENCE, keep_default_na=True).fillna({"on": ""})


def ridge(x: Floats, y: Floats) -> Learner:
    """Ridge regression on standardised columns, with a slope of the best noise for each family."""
    from sklearn.linear_model import Ridge

    families = [index for index, name in enumerate(COLUMNS) if name.startswith("is_")]
    best = COLUMNS.index("noise_best")
    middle = np.nan_to_num(np.nanmedian(np.where(np.isfinite(x), x, np.nan), axis=0))

    def widened(rows: Floats) -> Floats:
        filled = np.where(np.isfinite(rows), rows, middle)
        return np.hstack([filled, filled[:, families] * filled[:, [best]]])

    wide = widened(x)
    mean, spread = wide.mean(axis=0), wide.std(axis=0)
    spread[spread == 0] = 1.0
    fitted = Ridge(alpha=PENALTY).fit((wide - mean) / spread, y)
    return lambda rows: fitted.predict((widened(rows) - mean) / spread)


def isotonic(x: Floats, y: Floats) -> Learner:
    """Monotone in the best known noise, and in nothing else."""
    from sklearn.isotonic import IsotonicRegression

    best = COLUMNS.index("noise_best")
    fitted = IsotonicRegression(out_of_bounds="clip").fit(x[:, best], y)
    return lambda rows: fitted.predict(rows[:, best])


def boosting(x: Floats, y: Floats) -> Learner:
    """Gradient boosted trees, monotone in noise and shares."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    rises = ("noise", "noise_best", "removed", "influence")
    fitted = HistGradientBoostingRegressor(
        learning_rate=0.2,
        max_iter=30,
        max_leaf_nodes=8,
        min_samples_leaf=6,
        l2_regularization=1.0,
        monotonic_cst=[int(name in rises) for name in COLUMNS],
        early_stopping=False,
        random_state=0,
    ).fit(x, y)
    return lambda rows: fitted.predict(rows)


OF_MODEL = ("ln_parameters", "blocks", "base_nll", "gained", "ln_tokens", "law", "outliers")
"""Columns that size, data or the text decide. Trees can't go beyond the models they saw, and a handful of models can't
show what size does."""


def anchored(x: Floats, y: Floats) -> Learner:
    """Fit boosted trees to what the alteration alone adds to the published law of arXiv 2411.17691 at equivalent bits.

    Models whose training nobody knows count as the middle of the others.
    """
    law = COLUMNS.index("law")
    of_alteration = [name not in OF_MODEL for name in COLUMNS]
    tokens = COLUMNS.index("ln_tokens")
    known = x[np.isfinite(x[:, tokens]), tokens]
    middle = float(np.median(known)) if len(known) else math.log(20) + 20.0

    def anchor(rows: Floats) -> Floats:
        nobody = OF_DATA * middle - OF_SIZE * rows[:, COLUMNS.index("ln_parameters")]
        bits = np.array([equivalent_bits(math.exp(noise)) for noise in rows[:, COLUMNS.index("noise_best")]])
        return np.where(np.isfinite(rows[:, law]), rows[:, law], math.log(K) + nobody - OF_BITS * np.log(bits))

    fitted = boosting(np.where(of_alteration, x, 0.0), y - anchor(x))
    return lambda rows: fitted(np.where(of_alteration, rows, 0.0)) + anchor(rows)


def middle(x: Floats, y: Floats) -> Learner:
    """Take the median of the other learners: each is wrong in another way about a model unlike all others, and too few
    models are known to say which."""
    fitted = [fit_learner(name, x, y) for name in LEARNERS if name != "middle"]
    return lambda rows: np.median(
        [np.clip(learner(rows), math.log(FLOOR), math.log(CAP)) for learner in fitted], axis=0
    )


LEARNERS: dict[str, Callable[[Floats, Floats], Learner]] = {
    "ridge": ridge,
    "isotonic": isotonic,
    "boosting": boosting,
    "anchored": anchored,
    "middle": middle,
}
OF_NEW, OF_KNOWN = ("middle",), ("ridge", "isotonic", "boosting")
"""Learners for a model that no training row is of, and for one with rows: no law has to say what its size does."""


def fit_learner(name: str, x: Floats, y: Floats) -> Learner:
    """Fit the learner of that name; what was fitted on these very rows before is not fitted again.

    A table where every model is left out in turn, and every other model inside of that, asks for each pair twice.
    """
    return _fit_cached(name, x.shape[1], np.ascontiguousarray(x).tobytes(), y.tobytes())


@lru_cache(maxsize=512)
def _fit_cached(name: str, columns: int, x: bytes, y: bytes) -> Learner:
    return LEARNERS[name](np.frombuffer(x).reshape(-1, columns), np.frombuffer(y))


@dataclass(frozen=True)
class Prediction:
    """Damage in nats: float64 ``[rows]`` each."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Fitted:
    """The learner that was taken, its siblings without a group each, and the errors they made on it, in ln."""

    name: str
    whole: Learner
    folds: list[Learner]
    fold_of: npt.NDArray[np.intp]
    errors: Floats
    mean_errors: dict[str, float]

    def predict(self, rows: pd.DataFrame, confidence: float) -> Prediction:
        """Damage with the CV+ interval, between FLOOR and CAP; none of what changes nothing by construction."""
        x = rows[list(COLUMNS)].to_numpy(float)
        middle = self.whole(x)
        left_out = np.stack([fold(x) for fold in self.folds])[self.fold_of]
        count = len(self.errors)
        share = (1 - confidence) * (count + 1) / count
        low = np.quantile(left_out - self.errors[:, None], max(share / 2, 0), axis=0, method="lower")
        high = np.quantile(left_out + self.errors[:, None], min(1 - share / 2, 1), axis=0, method="higher")
        none = rows[UNCHANGED].to_numpy(bool)
        ends = (middle, np.minimum(low, middle), np.maximum(high, middle))
        return Prediction(*(np.where(none, FLOOR, damage_of(end)) for end in ends))


def beyond(known: pd.DataFrame, wanted: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Tell for each wanted row whether it lies outside of what the known rows can teach."""
    sizes = known["in_layers"]
    far = (wanted["in_layers"] > REACH * sizes.max()) | (wanted["in_layers"] < sizes.min() / REACH)
    far |= ~wanted["family"].isin(set(known["family"]))
    for axis, rows in known.groupby("axis"):
        for column, slack in SLACK.items():
            least, most = rows[column].min() - slack, rows[column].max() + slack
            far |= (wanted["axis"] == axis) & ((wanted[column] < least) | (wanted[column] > most))
    mask: npt.NDArray[np.bool_] = far.to_numpy(bool)
    return mask


def by_law(known: pd.DataFrame, target: str, wanted: pd.DataFrame, confidence: float) -> Prediction:
    """Predict by the published law, NaN where it says nothing; the interval is that of its errors on the known rows."""
    damage = known[target].to_numpy(float)
    errors = np.abs(np.log(laws.published(known, damage, known)) - ln_of(damage))
    errors = errors[np.isfinite(errors)]
    value = laws.published(known, damage, wanted)
    if len(errors) == 0:
        value = np.full(len(wanted), np.nan)
    wide = math.exp(float(np.quantile(errors, confidence))) if len(errors) else 1.0
    return Prediction(value, np.clip(value / wide, FLOOR, CAP), np.clip(value * wide, FLOOR, CAP))


def ln_of(damage: Floats) -> Floats:
    """Return the ln of damage in nats, between FLOOR and CAP."""
    ln: Floats = np.log(np.clip(damage, FLOOR, CAP))
    return ln


def damage_of(ln: Floats) -> Floats:
    """Return the nats of an ln damage."""
    nats: Floats = np.clip(np.exp(np.clip(ln, -20, 20)), FLOOR, CAP)
    return nats


def learners_for(rows: pd.DataFrame, model: str) -> tuple[str, ...]:
    """Names of the learners that ``fit`` chooses from for a variant of ``model``."""
    return OF_KNOWN if model in set(rows["model"]) else OF_NEW


def groups_for(rows: pd.DataFrame, model: str) -> Labels:
    """Group the training rows: by their models where ``model`` is none of these, else into a few groups of methods."""
    if model not in set(rows["model"]) and rows["model"].nunique() > 2:
        return np.asarray(rows["model"].to_numpy(str), dtype=np.str_)
    pairs = rows["model"] + "|" + rows["method"]
    order = {pair: index for index, pair in enumerate(dict.fromkeys(pairs))}
    return np.array([str(order[pair] % FOLDS) for pair in pairs])


def fit(rows: pd.DataFrame, target: str, groups: Labels, names: Sequence[str]) -> Fitted:
    """Choose the learner of ``names`` with the smallest error on groups left out. Raises ValueError for one group."""
    x, y = rows[list(COLUMNS)].to_numpy(float), ln_of(rows[target].to_numpy(float))
    labels, fold_of = np.unique(groups, return_inverse=True)
    if len(labels) < 2:
        raise ValueError("nothing to leave out: the rows are one group")
    folds: dict[str, list[Learner]] = {}
    errors: dict[str, Floats] = {}
    for name in names:
        folds[name] = [fit_learner(name, x[fold_of != fold], y[fold_of != fold]) for fold in range(len(labels))]
        errors[name] = np.empty(len(y))
        for fold, learner in enumerate(folds[name]):
            mine = fold_of == fold
            errors[name][mine] = np.abs(learner(x[mine]) - y[mine])
    means = {name: float(errors[name].mean()) for name in names}
    best = min(means, key=lambda name: means[name])
    return Fitted(best, fit_learner(best, x, y), folds[best], fold_of, errors[best], means)


@dataclass(frozen=True)
class LeftOut:
    """Predictions of rows that took no part in the fit: ``rows`` with observed, predicted, low and high, and a column
    for each learner and law; ``by``: what was left out, a model or a method."""

    by: str
    rows: pd.DataFrame


def leave_out(rows: pd.DataFrame, target: str, by: str, confidence: float, of: str | None = None) -> LeftOut:
    """Leave out one value of the column ``by`` after the other (of the model ``of`` only, where it is given)."""
    parts = []
    for value in dict.fromkeys(rows[by] if of is None else rows.loc[rows["model"] == of, by]):
        left_out = (rows[by] == value).to_numpy()
        wanted = left_out if of is None else left_out & (rows["model"] == of).to_numpy()
        known = rows[~left_out]
        if known["model"].nunique() >= 2 or known["method"].nunique() >= 2:
            parts.append(_predict_left_out(known, rows[wanted], target, by, confidence, of))
    empty = pd.DataFrame(columns=[*IDENTITY, "observed", "predicted", "low", "high", "learner"])
    return LeftOut(by, pd.concat(parts, ignore_index=True) if parts else empty)


def _predict_left_out(
    known: pd.DataFrame, wanted: pd.DataFrame, target: str, by: str, confidence: float, of: str | None
) -> pd.DataFrame:
    """Predict rows that were left out, by the learner that is best on the others, and by every law."""
    new = by == "model"
    groups = groups_for(known, str(wanted["model"].iloc[0])) if new or of is not None else _by_method(known)
    fitted = fit(known, target, groups, OF_NEW if new else OF_KNOWN)
    prediction, names = fitted.predict(wanted, confidence), np.full(len(wanted), fitted.name, dtype=object)
    if new:
        prediction, names = _with_law(prediction, names, known, target, wanted, confidence)
    predicted = wanted[list(IDENTITY)].assign(
        observed=np.clip(wanted[target].to_numpy(float), FLOOR, CAP),
        predicted=prediction.value,
        low=prediction.low,
        high=prediction.high,
        learner=names,
    )
    damage = known[target].to_numpy(float)
    for name, law in laws.LAWS.items():
        predicted[f"law {name}"] = law(known, damage, wanted)
    return predicted[predicted["predicted"].notna()]


def _with_law(
    prediction: Prediction,
    names: npt.NDArray[np.object_],
    known: pd.DataFrame,
    target: str,
    wanted: pd.DataFrame,
    confidence: float,
) -> tuple[Prediction, npt.NDArray[np.object_]]:
    """Put the law in the place of what the learner cannot know."""
    far, law = beyond(known, wanted), by_law(known, target, wanted, confidence)
    ends = ((law.value, prediction.value), (law.low, prediction.low), (law.high, prediction.high))
    return Prediction(*(np.where(far, of_law, learned) for of_law, learned in ends)), np.where(far, LAW, names)


def _by_method(rows: pd.DataFrame) -> Labels:
    """Spread the methods over groups, all models of one together: the predicted method is new everywhere."""
    order = {method: index for index, method in enumerate(dict.fromkeys(rows["method"]))}
    return np.array([str(order[method] % FOLDS) for method in rows["method"]])


@dataclass(frozen=True)
class Score:
    """Mean absolute errors of the predictor and of a law, in nats and in ln, on the rows that the law speaks of; and
    the share of these inside the predictor's intervals."""

    target: str
    of: str
    left_out: str
    law: str
    rows: int
    error: float
    law_error: float
    ln_error: float
    law_ln_error: float
    coverage: float


def scores(left: LeftOut, target: str, of: str) -> list[Score]:
    """Score the predictor against each law; ``of``: the rows that were left out, in words."""
    rows = left.rows
    scored = []
    for law in [column for column in rows if column.startswith("law ")]:
        said = rows[rows[law].notna()]
        if len(said) == 0:
            continue
        mine, its = (np.abs(said[name] - said["observed"]) for name in ("predicted", law))
        ln_mine, ln_its = (np.abs(np.log(said[name] / said["observed"])) for name in ("predicted", law))
        scored.append(
            Score(
                target=target,
                of=of,
                left_out=left.by,
                law=law.removeprefix("law "),
                rows=len(said),
                error=float(mine.mean()),
                law_error=float(its.mean()),
                ln_error=float(ln_mine.mean()),
                law_ln_error=float(ln_its.mean()),
                coverage=coverage(said),
            )
        )
    return scored


def coverage(rows: pd.DataFrame) -> float:
    """Share of observed damages inside their intervals; what both call less than FLOOR counts as inside."""
    if len(rows) == 0:
        return math.nan
    tiny = 1e-9
    return float(((rows["observed"] >= rows["low"] - tiny) & (rows["observed"] <= rows["high"] + tiny)).mean())
