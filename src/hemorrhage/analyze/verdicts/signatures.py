"""Rules of thumb about decoding, each tested on what the variants wrote.

A rule is a claim of arXiv 2503.23924 about how damage looks; its verdict is ``holds`` or ``does not hold`` where the
interval of a difference, paired over prompts, tells, else ``inconclusive``; ``not tested`` says what the sweep lacks.
hemorrhage.analyze.verdicts.published has what printed tables say about each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import BASE, Inputs, Output
from hemorrhage.analyze.rows.decoding import measure_texts, outcomes, spread_by_chance, spreads
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.analyze.verdicts.published import LIMIT
from hemorrhage.decode.degeneration import rep_n

HOLDS, FAILS, OPEN, UNTESTED = "holds", "does not hold", "inconclusive", "not tested"

RULES = {
    "repetition": "Repetition: greedy search, or a temperature too low",
    "incoherence": "Incoherence: a temperature too high, or too few bits",
    "spread": f"Spread over strategies above {100 * LIMIT:.0f} %: not aligned",
    "closed_ended": "FSD is the choice for tasks with right answers, better than temperature",
}
"""Rule -> what it claims."""

SAMPLERS = ("temperature", "top_k", "top_p", "min_p", "typical", "eta", "epsilon", "mirostat")
FSD = ("fsd", "fsd_d")


@dataclass(frozen=True)
class RuleTest:
    """One test of a rule on one variant's texts of one data set; ``estimate`` with its interval is in the words'
    unit, ``p`` is two-sided, NaN where there is none."""

    rule: str
    variant: str
    dataset: str
    test: str
    verdict: str
    evidence: str
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


@dataclass(frozen=True)
class Strategy:
    """The module of a decoding strategy, and its temperature, NaN where it has none."""

    module: str
    temperature: float

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Read a strategy's settings, as generations.parquet has them."""
        settings = json.loads(text)
        return cls(settings["strategy"], settings.get("temperature", math.nan))


@dataclass(frozen=True)
class Texts:
    """A variant's measured texts of one data set, and what people wrote, ``human`` (item, tokens, base_nll)."""

    variant: str
    dataset: str
    texts: pd.DataFrame
    human: pd.DataFrame

    def by(self, metric: str) -> pd.DataFrame:
        """``metric`` as items by strategies."""
        return outcomes(self.texts, metric)

    def named(self, *modules: str) -> list[str]:
        """List the strategies that are of one of ``modules``."""
        return [name for name, strategy in self.strategies.items() if strategy.module in modules]

    @property
    def strategies(self) -> dict[str, Strategy]:
        """Name -> the strategy, in the order of the texts."""
        first = self.texts.drop_duplicates("strategy")
        return {name: Strategy.parse(text) for name, text in zip(first["strategy"], first["settings"], strict=True)}

    @property
    def temperatures(self) -> list[str]:
        """Strategies that only change the temperature, the lowest first."""
        by_name = {name: each.temperature for name, each in self.strategies.items() if each.module == "temperature"}
        return sorted(by_name, key=lambda name: by_name[name])


def judge(inputs: Inputs, spec: Spec) -> list[RuleTest]:
    """Test every rule on every variant that was decoded."""
    tests: list[RuleTest] = []
    base: dict[str, Texts] = {}
    for name, output in sorted(inputs.decodes.items(), key=lambda entry: entry[0] != BASE):
        if output.failure is not None:
            continue
        for texts in _texts(name, output):
            if name == BASE:
                base[texts.dataset] = texts
            if texts.texts["task"].iloc[0] == "closed_ended":
                tests += [_spread(texts, spec), _fsd(texts, spec)]
            else:
                tests += [*_repetition(texts, spec), *_incoherence(texts, base.get(texts.dataset), spec)]
    order = list(RULES)
    return sorted(tests, key=lambda test: order.index(test.rule))


def _texts(name: str, output: Output) -> Iterator[Texts]:
    human = output.tables.get("human.parquet")
    for dataset, texts in measure_texts(output).groupby("dataset", sort=False):
        written = texts.iloc[:0] if human is None else human[human["dataset"] == dataset]
        yield Texts(name, str(dataset), texts, written)


def _repetition(texts: Texts, spec: Spec) -> Iterator[RuleTest]:
    repeated, greedy = texts.by("rep_4"), texts.named("greedy")
    subject = ("repetition", texts.variant, texts.dataset)
    if not greedy:
        yield RuleTest(*subject, "greedy search repeats itself", UNTESTED, "no greedy search in the sweep")
        return
    people = {row.item: rep_n(list(row.tokens), 4) for row in texts.human.itertuples()}
    if people:
        theirs = repeated.index.map(people).to_numpy(float)
        yield _compare(
            *subject, "greedy search repeats more than people", repeated[greedy[0]].to_numpy() - theirs, "rep-4", spec
        )
    samplers = texts.named(*SAMPLERS)
    if samplers:
        difference = repeated[greedy[0]] - repeated[samplers].mean(axis=1)
        yield _compare(*subject, "greedy search repeats more than sampling", difference.to_numpy(), "rep-4", spec)
    yield _temperatures(
        texts, "repetition", "a low temperature repeats more than a high one", repeated, -1, "rep-4", spec
    )


def _incoherence(texts: Texts, base: Texts | None, spec: Spec) -> Iterator[RuleTest]:
    surprise = texts.by("base_nll")
    subject = ("incoherence", texts.variant, texts.dataset)
    test = "a high temperature surprises the base model more than a low one"
    yield _temperatures(texts, "incoherence", test, surprise, 1, "nats per token", spec)
    if base is None or texts.variant == BASE:
        return
    theirs = base.by("base_nll").reindex(index=surprise.index, columns=surprise.columns)
    difference = (surprise - theirs).mean(axis=1)
    test = "its texts surprise the base model more than the base's own"
    yield _compare(*subject, test, difference.to_numpy(), "nats per token", spec)


def _temperatures(
    texts: Texts, rule: str, test: str, values: pd.DataFrame, sign: int, unit: str, spec: Spec
) -> RuleTest:
    """Compare the highest temperature with the lowest, or the reverse where ``sign`` is -1."""
    names = texts.temperatures
    if len(names) < 2:
        return RuleTest(rule, texts.variant, texts.dataset, test, UNTESTED, "the sweep has fewer than two temperatures")
    difference = sign * (values[names[-1]] - values[names[0]]).to_numpy()
    return _compare(rule, texts.variant, texts.dataset, test, difference, unit, spec)


def _compare(rule: str, variant: str, dataset: str, test: str, differences: Floats, unit: str, spec: Spec) -> RuleTest:
    """Test whether the mean of paired differences ``[items]`` is above 0."""
    known = differences[np.isfinite(differences)]
    if len(known) < 2:
        return RuleTest(rule, variant, dataset, test, UNTESTED, "fewer than two texts to compare")
    counts = bootstrap.draws(dataset, len(known), spec.resamples, spec.seed)
    low, high = bootstrap.interval(counts @ known / len(known), spec.confidence, len(known))
    mean, p = float(known.mean()), significance.sign_flip(known, spec.seed)
    verdict = HOLDS if low > 0 and p <= 1 - spec.confidence else FAILS if high < 0 else OPEN
    evidence = f"{mean:+.3g} {unit} ({low:+.3g} to {high:+.3g}), p {p:.2g}, {len(known)} texts"
    return RuleTest(rule, variant, dataset, test, verdict, evidence, mean, low, high, p)


def _spread(texts: Texts, spec: Spec) -> RuleTest:
    """Test (max - min) / max over strategies against the limit, and against what equally good strategies show."""
    right = texts.by("accuracy").to_numpy()
    subject = ("spread", texts.variant, texts.dataset, f"(max - min) / max of accuracy is above {100 * LIMIT:.0f} %")
    items, strategies = right.shape
    value = float(spreads(right.mean(axis=0, keepdims=True))["spread_over_max"][0])
    if strategies < 2 or not math.isfinite(value):
        return RuleTest(*subject, UNTESTED, "fewer than two strategies, or none gets anything right")
    counts = bootstrap.draws(texts.dataset, items, spec.resamples, spec.seed)
    resampled = spreads(counts @ right / items)["spread_over_max"]
    low, high = bootstrap.interval_of_ratio(resampled, spec.confidence, items)
    chance = spread_by_chance(right, spec)
    verdict = FAILS if high <= LIMIT else OPEN
    if value > max(LIMIT, chance) and low > LIMIT:
        verdict = HOLDS
    interval = f"{100 * low:.0f} to {100 * high:.0f}" if math.isfinite(low) else "too few right answers for an interval"
    evidence = (
        f"{100 * value:.0f} % ({interval}); equally good strategies reach "
        f"{100 * chance:.0f} % by chance on {items} items"
    )
    return RuleTest(*subject, verdict, evidence, value, low, high)


def _fsd(texts: Texts, spec: Spec) -> RuleTest:
    """Compare the accuracy of the better FSD with that of the best temperature, on the same items."""
    right = texts.by("accuracy")
    fsd, temperatures = texts.named(*FSD), texts.temperatures
    test = "FSD is right more often than temperature sampling"
    subject = ("closed_ended", texts.variant, texts.dataset)
    if not fsd or not temperatures:
        return RuleTest(*subject, test, UNTESTED, "the sweep lacks FSD or a temperature")
    first, second = (max(names, key=lambda name: right[name].mean()) for names in (fsd, temperatures))
    difference = (right[first] - right[second]).to_numpy()
    return _compare(*subject, f"{test} ({first}, {second})", difference, "of accuracy", spec)
