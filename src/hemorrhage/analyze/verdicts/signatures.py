"""Rules of thumb about decoding, each tested on what the variants wrote.

A rule is a claim of arXiv 2503.23924 about how damage looks, tested by differences that are paired over prompts. A
test says ``holds`` where the difference is surely above 0, ``does not hold`` where it is surely below the least that
matters, ``no power`` where that least would not have been found four times out of five, else ``inconclusive``; ``not
tested`` says what the sweep lacks. ``no power`` counts on neither side. Of a question, that nothing is above 0 and
that the least that matters is reached cannot both be true. So p-values times the number of a study's questions hold any
wrong ``holds`` and any wrong ``does not hold`` together to the part that rules have of the chance of an error
(hemorrhage.analyze.rows.findings): benchmarks/decoding_rules.py counts both on made-up studies.
hemorrhage.analyze.verdicts.published has what printed tables say about each.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats

from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.rows import stability
from hemorrhage.analyze.rows.answers import least_share
from hemorrhage.analyze.rows.decoding import CLOSED, compared_variants, measure_texts, outcomes
from hemorrhage.analyze.rows.findings import KINDS, careful
from hemorrhage.analyze.rows.floors import Floors, floors
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.analyze.verdicts.published import LIMIT
from hemorrhage.decode.degeneration import LOOP_TOKENS, rep_n

HOLDS, FAILS, OPEN, UNTESTED, NO_POWER = "holds", "does not hold", "inconclusive", "not tested", "no power"

FEW_BITS = 3.0
"""Bits of a layer's weights, scales included, below which the study expects incoherence."""

SANE = 1.0
"""The highest temperature at which a text tells of the model: above, of the temperature."""

RULES = {
    "repetition": "Repetition: greedy search, or a temperature too low",
    "incoherence": f"Incoherence: a temperature too high, or fewer than {FEW_BITS:.0f} bits",
    "spread": f"Spread over strategies above {100 * LIMIT:.0f} %: not aligned",
    "closed_ended": "FSD is the choice for tasks with right answers, better than temperature",
}
"""Rule -> what it claims."""

SAMPLERS = ("sample", "as_shipped", "temperature", "top_k", "top_p", "min_p", "typical", "eta", "epsilon", "mirostat")
FSD = ("fsd", "fsd_d")

FLIPS = 10 * significance.FLIPS
"""Random signs of a test: so many that a p-value can be small enough among all tests of a study."""


@dataclass(frozen=True)
class Unit:
    """What differences are measured in: its name, the least that matters, and the most that there can be."""

    name: str
    least: float
    most: float = math.inf


REPETITION = Unit("rep-4", 0.1, 1.0)
SURPRISE = Unit("nats per token", 0.1)
ACCURACY = Unit("of accuracy", 0.05, 1.0)


@dataclass(frozen=True)
class RuleTest:
    """One test of a rule on one variant's texts of one data set; ``estimate`` with its interval is in the words' unit,
    ``p`` is two-sided and corrected for all that is said of decoding, ``mde`` the smallest effect that would have been
    seen; NaN where there is none."""

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
    mde: float = math.nan


@dataclass(frozen=True)
class Question:
    """A test to be decided with all others: differences ``[items]``, above 0 where the rule holds."""

    rule: str
    variant: str
    dataset: str
    test: str
    unit: Unit
    differences: Floats = field(repr=False)

    @property
    def items(self) -> int:
        """Items that were compared."""
        return len(self.differences)

    def above(self, spec: Spec) -> float:
        """Return the two-sided p-value of a mean other than 0."""
        return significance.sign_flip(self.differences, spec.seed, flips=FLIPS)

    def below_least(self, _spec: Spec) -> float:
        """Return the p-value of a mean below the least that matters.

        By Student's t; and where a difference is bounded, not less than the chance that a share of items which makes
        the least that matters shows in none, since t knows no tail that it has not seen.
        """
        error = float(self.differences.std(ddof=1)) / math.sqrt(self.items)
        gap = float(self.differences.mean()) - self.unit.least
        p = float(stats.t.cdf(gap / error, self.items - 1)) if error > 0 else float(gap >= 0)
        if math.isinf(self.unit.most):
            return p
        return max(p, (1 - self.unit.least / self.unit.most) ** self.items)

    def detectable(self, confidence: float) -> float:
        """Return the smallest mean that is found four times out of five; NaN where nothing varies and all may be."""
        seen = significance.detectable_mean(self.differences, np.ones(self.items), confidence)
        if math.isinf(self.unit.most):
            return seen
        least = self.unit.most * least_share(self.items)
        return least if math.isnan(seen) else max(seen, least)

    def decided(self, above: float, below: float, careful: Spec, spec: Spec) -> RuleTest:
        """Return the verdict by corrected p-values; ``careful`` has the confidence of one test of the study."""
        known, unit, items = self.differences, self.unit, self.items
        counts = bootstrap.draws(self.dataset, items, spec.resamples, spec.seed)
        low, high = bootstrap.interval(counts @ known / items, spec.confidence, items)
        mean, error, mde = float(known.mean()), 1 - spec.confidence, self.detectable(careful.confidence)
        if mean > 0 and low > 0 and above <= error:
            verdict = HOLDS
        elif below <= error:
            verdict = FAILS
        else:
            verdict = OPEN if mde <= unit.least else NO_POWER
        seen = "no effect is known to show" if math.isnan(mde) else f"{mde:.2g} would have been seen"
        evidence = f"{mean:+.3g} {unit.name} ({low:+.3g} to {high:+.3g}), p {above:.2g}, {items} texts; {seen}"
        facts = (self.rule, self.variant, self.dataset, self.test)
        return RuleTest(*facts, verdict, evidence, mean, low, high, above, mde)


@dataclass(frozen=True)
class SpreadQuestion:
    """Whether the spread over strategies without noise is above the limit, which it is where the model is not aligned.

    ``subject``: rule, variant, data set and test.
    """

    subject: tuple[str, str, str, str]
    measured: stability.Spread
    aligned: bool

    def above(self, spec: Spec) -> float:
        """Return the p-value of a spread above the limit: of the interval's normal, and of any spread at all."""
        return max(1 - self._below(spec), self.measured.p)

    def below_least(self, spec: Spec) -> float:
        """Return the p-value of a spread up to the limit.

        Not less than the chance that a share of items as large as the limit shows in none.
        """
        return max(self._below(spec), (1 - LIMIT) ** self.measured.items)

    def _below(self, spec: Spec) -> float:
        error = self._half / float(stats.norm.ppf((1 + spec.confidence) / 2))
        gap = self.measured.relative - LIMIT
        return float(stats.norm.cdf(gap / error)) if error > 0 else float(gap > 0)

    @property
    def _half(self) -> float:
        return (self.measured.high - self.measured.low) / 2

    def decided(self, above: float, below: float, careful: Spec, spec: Spec) -> RuleTest:
        """Return the verdict by corrected p-values; ``careful`` has the confidence of one test of the study."""
        measured, error = self.measured, 1 - spec.confidence
        wider = stats.norm.ppf([(1 + each.confidence) / 2 for each in (careful, spec)])
        half = self._half * float(wider[0] / wider[1])
        is_above, is_within = measured.low > LIMIT and above <= error, measured.high <= LIMIT and below <= error
        verdict = OPEN if half <= LIMIT else NO_POWER
        if is_above or is_within:
            verdict = HOLDS if is_above != self.aligned else FAILS
        evidence = (
            f"{100 * measured.relative:.0f} % ({100 * measured.low:.0f} to {100 * measured.high:.0f}) without noise, "
            f"p of any spread {measured.p:.2g}, {measured.strategies} strategies on {measured.items} items"
        )
        numbers = (measured.relative, measured.low, measured.high, min(above, 1.0), LIMIT + half)
        return RuleTest(*self.subject, verdict, evidence, *numbers)


Asked = RuleTest | Question | SpreadQuestion
"""What is decided already, or is to be decided with all others."""


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
    asked: list[Asked] = []
    variants = compared_variants(inputs.decodes)
    base: dict[str, Texts] = {}
    for name, output in sorted(inputs.decodes.items(), key=lambda entry: entry[0] != BASE):
        if output.failure is not None:
            continue
        for texts in _texts(name, output):
            if name == BASE:
                base[texts.dataset] = texts
            beside = base.get(texts.dataset)
            if texts.texts["task"].iloc[0] == CLOSED:
                of_base = (beside or texts).texts
                tests = variants * sum(each.texts["task"].iloc[0] == CLOSED for each in base.values())
                known = floors(texts.texts, of_base, spec, beside is None or beside is texts, tests)
                asked += [_spread(texts, known, is_aligned(inputs), spec), _fsd(texts, known)]
            else:
                asked += [*_repetition(texts), *_incoherence(texts, beside, inputs.variants.get(name))]
    order = list(RULES)
    return sorted(decide(asked, spec), key=lambda test: order.index(test.rule))


def is_aligned(inputs: Inputs) -> bool:
    """Return whether the base model is aligned: as params.yaml says of its sibling, else by its name."""
    if inputs.sibling is not None:
        return not inputs.sibling.is_aligned
    return bool(re.search(r"instruct|chat|-it\b", str(inputs.base.get("model", {})), re.IGNORECASE))


def decide(asked: Iterable[Asked], spec: Spec) -> Iterator[RuleTest]:
    """Decide the questions together; what is decided is passed on."""
    asked = list(asked)
    yield from (each for each in asked if isinstance(each, RuleTest))
    questions = [each for each in asked if not isinstance(each, RuleTest)]
    one_of_them, times = careful(spec, len(questions)), len(KINDS) * len(questions)
    for question in questions:
        above, below = (min(times * p, 1.0) for p in (question.above(spec), question.below_least(spec)))
        yield question.decided(above, below, one_of_them, spec)


def _texts(name: str, output: Output) -> Iterator[Texts]:
    human = output.tables.get("human.parquet")
    for dataset, texts in measure_texts(output).groupby("dataset", sort=False):
        written = texts.iloc[:0] if human is None else human[human["dataset"] == dataset]
        yield Texts(name, str(dataset), texts, written)


def _repetition(texts: Texts) -> Iterator[RuleTest | Question]:
    repeated, greedy = texts.by("rep_4"), texts.named("greedy")
    subject = ("repetition", texts.variant, texts.dataset)
    longest = int(texts.texts["length"].max())
    if longest < LOOP_TOKENS:
        reason = f"texts of at most {longest} tokens: repetition shows from {LOOP_TOKENS} on"
        yield RuleTest(*subject, "greedy search repeats itself", NO_POWER, reason)
        return
    if not greedy:
        yield RuleTest(*subject, "greedy search repeats itself", UNTESTED, "no greedy search in the sweep")
        return
    people = {row.item: rep_n(list(row.tokens), 4) for row in texts.human.itertuples()}
    if people:
        theirs = repeated.index.map(people).to_numpy(float)
        difference = repeated[greedy[0]].to_numpy() - theirs
        yield _compare(*subject, "greedy search repeats more than people", difference, REPETITION)
    samplers = texts.named(*SAMPLERS)
    if samplers:
        difference = (repeated[greedy[0]] - repeated[samplers].mean(axis=1)).to_numpy()
        yield _compare(*subject, "greedy search repeats more than sampling", difference, REPETITION)
    yield _temperatures(texts, "repetition", "a low temperature repeats more than a high one", repeated, -1, REPETITION)


def _incoherence(texts: Texts, base: Texts | None, variant: Variant | None) -> Iterator[RuleTest | Question]:
    surprise = texts.by("base_nll")
    test = "a high temperature surprises the base model more than a low one"
    yield _temperatures(texts, "incoherence", test, surprise, 1, SURPRISE)
    if base is None or variant is None or texts.variant == BASE:
        return
    subject = (
        "incoherence",
        texts.variant,
        texts.dataset,
        "its texts surprise the base model more than the base's own",
    )
    bits = layer_bits(variant)
    if bits is None or bits >= FEW_BITS:
        what = "its weights are not quantized" if bits is None else f"its weights have {bits:.3g} bits"
        yield RuleTest(*subject, UNTESTED, f"{what}; the rule is about fewer than {FEW_BITS:.0f}")
        return
    # nan, where a strategy has no temperature, is sane.
    sane = [name for name, each in texts.strategies.items() if not each.temperature > SANE]
    theirs = base.by("base_nll").reindex(index=surprise.index, columns=sane)
    yield _compare(*subject, (surprise[sane] - theirs).mean(axis=1).to_numpy(), SURPRISE)


def layer_bits(variant: Variant) -> float | None:
    """Return the bits that a quantized variant's layers take for a weight, scales included; None of another one."""
    if variant.axis != "bits":
        return None
    bits = variant.manifest.get("layer_bits") or variant.severity
    return float(bits) if math.isfinite(bits) else None


def _temperatures(
    texts: Texts, rule: str, test: str, values: pd.DataFrame, sign: int, unit: Unit
) -> RuleTest | Question:
    """Compare the highest temperature with the lowest, or the reverse where ``sign`` is -1."""
    names = texts.temperatures
    if len(names) < 2:
        return RuleTest(rule, texts.variant, texts.dataset, test, UNTESTED, "the sweep has fewer than two temperatures")
    difference = sign * (values[names[-1]] - values[names[0]]).to_numpy()
    return _compare(rule, texts.variant, texts.dataset, test, difference, unit)


def _compare(rule: str, variant: str, dataset: str, test: str, differences: Floats, unit: Unit) -> RuleTest | Question:
    """Ask whether the mean of paired differences ``[items]`` is above 0."""
    known = differences[np.isfinite(differences)]
    if len(known) < 2:
        return RuleTest(rule, variant, dataset, test, UNTESTED, "fewer than two texts to compare")
    return Question(rule, variant, dataset, test, unit, known)


def _spread(texts: Texts, known: Floors, aligned: bool, spec: Spec) -> RuleTest | SpreadQuestion:
    """Test that the spread without noise is above the limit exactly where the model is not aligned."""
    side = "at most" if aligned else "above"
    called = "aligned" if aligned else "not aligned"
    test = f"the spread of a model that is {called} is {side} {100 * LIMIT:.0f} %"
    subject = ("spread", texts.variant, texts.dataset, test)
    right = texts.by("accuracy")
    compared = known.evidence(list(right.columns))
    measured = stability.spread(right[compared].to_numpy(), f"closed {texts.dataset}", spec)
    if measured is None or not math.isfinite(measured.low):
        reason = known.lost or "fewer than two strategies are evidence, or they get too little right"
        return RuleTest(*subject, UNTESTED, reason)
    return SpreadQuestion(subject, measured, aligned)


def _fsd(texts: Texts, known: Floors) -> RuleTest | Question:
    """Compare the accuracy of FSD with that of sane temperatures, on the same items: means over each."""
    right = texts.by("accuracy")
    test, subject = "FSD is right more often than temperature sampling", ("closed_ended", texts.variant, texts.dataset)
    sane = [name for name in texts.temperatures if texts.strategies[name].temperature <= SANE]
    asked = texts.named(*FSD)
    if known.lost or not asked or not sane:
        return RuleTest(*subject, test, UNTESTED, known.lost or "the sweep lacks FSD or a temperature up to 1")
    fsd, temperatures = known.compared(asked), known.compared(sane)
    if not fsd or not temperatures:
        reason = next(known.left_out[name] for name in (asked if not fsd else sane))
        return RuleTest(*subject, test, UNTESTED, reason)
    difference = right[fsd].mean(axis=1) - right[temperatures].mean(axis=1)
    return _compare(*subject, f"{test} ({', '.join(fsd)})", difference.to_numpy(), ACCURACY)
