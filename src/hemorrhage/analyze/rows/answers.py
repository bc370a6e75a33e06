"""What people notice of a variant's texts beside whether they are right: how long they are, and how they end.

A model that thinks longer costs more, whatever a token costs (arXiv 2606.25519); one that reaches the answer and does
not commit to it is of no use (arXiv 2606.00206). Texts are paired with the base's to the same prompts under the same
strategy; an item is one observation, with all its strategies and draws. RATIO is also of ``{answer=right}`` and
``{answer=wrong}``; ``bytes_ratio`` is tokens times the bytes of the weights that each of them reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hemorrhage.analyze.rows.findings import CHANGE, RATIO
from hemorrhage.analyze.rows.floors import STATUSES, rights
from hemorrhage.analyze.rows.schema import Statistic
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.decode import answers
from hemorrhage.decode.degeneration import LOOP_TOKENS

MOST_CUT = 0.5
"""Share of texts at their limit above which their length is that of the limit."""


@dataclass(frozen=True)
class Sides:
    """The measured texts of the base and of a variant on the same prompts, joined: columns end in ``_base``."""

    joined: pd.DataFrame

    @classmethod
    def of(cls, base: pd.DataFrame, texts: pd.DataFrame) -> Sides:
        """Join the texts of one data set by strategy, item and draw."""
        keys = ["strategy", "item", "draw"]
        columns = [*keys, "length", "cut", "loop_rate", "correct"]
        return cls(texts[columns].merge(base[columns], on=keys, suffixes=("", "_base")))

    def by_item(self, column: str, chosen: np.ndarray) -> tuple[Floats, Floats]:
        """Return sums over an item's texts ``[items]`` of the variant and of the base, of the texts ``chosen``."""
        groups = self.joined[chosen].groupby("item")
        return groups[column].sum().to_numpy(float), groups[f"{column}_base"].sum().to_numpy(float)


def uncommitted(texts: pd.DataFrame, base: pd.DataFrame) -> Floats:
    """Return, of each text 0 or 1, whether it holds the right answer and gives another, or none; NaN where unknown.

    The right answer is known of items that any text of either got right.
    """
    known = rights(pd.concat([base, texts], ignore_index=True))["answer"].to_dict()
    return np.array(
        [
            float(not right and mentions(text, known[item])) if item in known else np.nan
            for item, text, right in zip(texts["item"], texts["text"], texts["strict_correct"], strict=True)
        ]
    )


def mentions(text: str, right: str) -> bool:
    """Return whether ``text`` holds the answer ``right`` anywhere: a number by its value, words without case."""
    wanted_number = answers.NUMBER.search(right)
    if wanted_number:
        return any(answers.is_right(number, wanted_number[0]) for number in answers.NUMBER.findall(text))
    words = [word.casefold() for word in answers.WORD.findall(text)]
    wanted = [word.casefold() for word in answers.WORD.findall(right)]
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


def has_answers(texts: pd.DataFrame) -> bool:
    """Return whether the answers of closed-ended texts stand in them: not what became of a program."""
    return not set(texts["answer"]) <= STATUSES


def changes(
    sides: Sides, size: float, is_closed: bool, dataset: str, spec: Spec, confidence: float | None = None
) -> Iterator[tuple[str, Statistic]]:
    """Yield what a variant's texts cost more than the base's.

    ``size``: its bytes over the base's; ``confidence``: that of a test of it in the study, of which the smallest
    effect that would have been seen is told, by default that of an interval.
    """
    confidence = spec.confidence if confidence is None else confidence
    joined = sides.joined
    if joined.empty:
        return
    everything = np.ones(len(joined), dtype=bool)
    ratio = _ratio(sides, everything, dataset, spec, confidence)
    yield RATIO, ratio
    if is_closed:
        right = (joined["correct"] & joined["correct_base"]).to_numpy()
        yield f"{RATIO}{{answer=right}}", _ratio(sides, right, dataset, spec)
        yield f"{RATIO}{{answer=wrong}}", _ratio(sides, ~joined["correct"].to_numpy(), dataset, spec)
    if np.isfinite(size):
        yield "bytes_ratio", _times(ratio, size)
    yield CHANGE, _loops(sides, everything, dataset, spec, confidence)


def _ratio(sides: Sides, chosen: np.ndarray, dataset: str, spec: Spec, confidence: float | None = None) -> Statistic:
    """Compare tokens: a ratio of sums, with an interval over items.

    With ``confidence``, that of a test, it has the test of its logarithm's signs.
    """
    texts = int(chosen.sum())
    if not texts:
        return Statistic.undefined("no such texts")
    cut = [int(sides.joined.loc[chosen, column].sum()) for column in ("cut", "cut_base")]
    if max(cut) > MOST_CUT * texts:
        return Statistic.undefined(
            f"of {texts} texts {cut[0]} reach their limit of tokens, {cut[1]} of the base's: the limit is their length"
        )
    ours, theirs = sides.by_item("length", chosen)
    counts = bootstrap.draws(dataset, len(ours), spec.resamples, spec.seed)
    low, high = bootstrap.interval((counts @ ours) / (counts @ theirs), spec.confidence, len(ours))
    logs = np.log(ours / theirs)
    if confidence is None:
        return Statistic(float(ours.sum() / theirs.sum()), low, high, len(ours))
    p = significance.sign_flip(logs, spec.seed)
    detected = significance.detectable_mean(logs, np.ones(len(logs)), confidence)
    return Statistic(float(ours.sum() / theirs.sum()), low, high, len(ours), p=p, mde=float(np.expm1(detected)))


def _times(statistic: Statistic, factor: float) -> Statistic:
    if statistic.reason:
        return statistic
    value, low, high = (factor * each for each in (statistic.estimate, statistic.low, statistic.high))
    return Statistic(value, low, high, statistic.n)


def _loops(sides: Sides, everything: np.ndarray, dataset: str, spec: Spec, confidence: float) -> Statistic:
    """Compare how many texts end in a loop: exact signs of the items' changes."""
    longest = int(sides.joined[["length", "length_base"]].to_numpy().max())
    if longest < LOOP_TOKENS:
        return Statistic.undefined(f"texts of at most {longest} tokens: loops show from {LOOP_TOKENS} on")
    ours, theirs = sides.by_item("loop_rate", everything)
    texts = sides.joined.groupby("item").size().to_numpy(float)
    net = (ours - theirs).astype(np.int64)
    counts = bootstrap.draws(dataset, len(net), spec.resamples, spec.seed)
    low, high = bootstrap.interval((counts @ net) / (counts @ texts), spec.confidence, len(net))
    seen = significance.detectable_mean(net / texts, np.ones(len(net)), confidence)
    least = least_share(len(net))
    mde = least if np.isnan(seen) else max(seen, least)
    return Statistic(float(net.sum() / texts.sum()), low, high, len(net), p=significance.mcnemar(net), mde=mde)


def least_share(items: int) -> float:
    """Return the smallest share of items that shows in one of so many four times out of five."""
    return float(1 - (1 - significance.POWER) ** (1 / items))
