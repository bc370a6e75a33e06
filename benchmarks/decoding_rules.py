"""How often the verdicts on decoding are wrong, and how often they find what is there, on made-up studies.

    python -m benchmarks.decoding_rules
    python -m benchmarks.decoding_rules --write docs/metrics.md

A study has a base and two variants. Closed-ended: 48 items of a difficulty each, under six strategies, answers are
one of nine digits. Open-ended: texts of up to 128 tokens behind 48 prompts under two strategies, of 60 words that
follow one another by chains that each prompt draws anew. The second variant differs from the base by chance alone; the
first does what is planted. Nothing of these processes is in the analysis.

Each column is a plant, each line what is said of the first variant, bold where that is right. The last line counts
studies in which anything is said that is not. ``--write`` puts the tables into a document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import marked
from hemorrhage.analyze.inputs import Output
from hemorrhage.analyze.rows import stability
from hemorrhage.analyze.rows.answers import CHANGE, RATIO, Sides, changes
from hemorrhage.analyze.rows.decoding import measure_texts, outcomes
from hemorrhage.analyze.rows.floors import floors
from hemorrhage.analyze.rows.interaction import interaction
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import significance
from hemorrhage.analyze.verdicts import signatures
from hemorrhage.analyze.verdicts.words import raised_words

SPEC = Spec(resamples=300, confidence=0.95, seed=0)
ERROR = 1 - SPEC.confidence
ITEMS, LIMIT, VOCABULARY = 48, 128, 60
BEGIN, END = "<!-- python -m benchmarks.decoding_rules -->", "<!-- end -->"

WAIT = 7
"""The token of hesitation."""

WORDS = [f"{'bcdfg'[n % 5]}{'aeiou'[n // 5 % 5]}{'klmnpr'[n // 25]}en" for n in range(VOCABULARY)]
WORDS[WAIT] = "wait"

CLOSED = ("greedy", "cold", "warm", "top_p", "min_p", "beam")
OPEN = ("greedy", "top_p")
"""Strategies of closed-ended and of open-ended prompts."""

Texts = list[pd.DataFrame]
Studies = Callable[[np.random.Generator, "Plant"], Texts]
Found = dict[str, set[int]]


@dataclass(frozen=True)
class Plant:
    """What the first variant does: ``odds`` of hesitation times; shares of texts that ``loop``, of items with one
    ``answer``; accuracy that one ``strategy`` loses, that ``all`` lose. ``effects``: what may be said of it."""

    name: str
    effects: tuple[str, ...] = ()
    odds: float = 1.0
    loop: float = 0.0
    answer: float = 0.0
    strategy: float = 0.0
    all: float = 0.0


CONSTANT, COSTS, SPREAD, RULE = (
    "one constant answer",
    "a strategy costs more",
    "a spread over strategies",
    "a rule holds",
)
LONGER, LOOPS, RAISED = "more or fewer tokens", "loops", "words written more often"

OF_CLOSED = (
    Plant("nothing"),
    Plant("one answer on 60 %", (CONSTANT,), answer=0.6),
    Plant("one strategy loses 25 points", (COSTS, SPREAD, RULE), strategy=0.25),
    Plant("all lose 25 points", all=0.25),
)
OF_OPEN = (
    Plant("nothing"),
    Plant("odds of hesitation times 2", (LONGER, RAISED), odds=2.0),
    Plant("20 % of prompts loop", (LONGER, LOOPS), loop=0.2),
)


def answered(rng: np.random.Generator, plant: Plant) -> Texts:
    """Make the answers of the base and of two variants."""
    skill, truth = rng.beta(3, 2, ITEMS), 1 + rng.permutation(ITEMS) % 9
    sides = []
    for does in (OF_CLOSED[0], plant, OF_CLOSED[0]):
        stuck, rows = rng.random(ITEMS) < does.answer, []
        for number, name in enumerate(CLOSED):
            chance = np.clip(skill - does.all - does.strategy * (number == 2), 0.02, 0.98)
            given = np.where(rng.random(ITEMS) < chance, truth, 1 + rng.integers(0, 9, ITEMS))
            given = np.where(stuck, 2, given)
            rows.append(_rows(name, "closed_ended", [f" {each}" for each in given]).assign(correct=given == truth))
        side = pd.concat(rows, ignore_index=True)
        sides.append(side.assign(answer=side["text"].str.strip(), accuracy=side["correct"].astype(float)))
    return sides


def written(rng: np.random.Generator, plant: Plant) -> Texts:
    """Make the texts of the base and of two variants; after a hesitation a text is six tokens longer."""
    chains, lengths = rng.integers(0, VOCABULARY, (ITEMS, VOCABULARY, 4)), rng.gamma(20, 2.5, ITEMS)
    sides = []
    for does in (OF_OPEN[0], plant, OF_OPEN[0]):
        hesitates, looping, rows = does.odds * 0.02 / (1 + 0.02 * (does.odds - 1)), rng.random(ITEMS) < does.loop, []
        for name in OPEN:
            tokens = [_continue(rng, chains[item], lengths[item], hesitates) for item in range(ITEMS)]
            for item in np.flatnonzero(looping):
                tokens[item] = list(np.resize(tokens[item][10:16], LIMIT))
            texts = [" ".join(WORDS[token] for token in each) for each in tokens]
            ends = ["limit" if len(each) == LIMIT else "eos" for each in tokens]
            rows.append(_rows(name, "open_ended", texts).assign(tokens=tokens, finish=ends, correct=False))
        table = pd.concat(rows, ignore_index=True).assign(answer="", strict_correct=False, base_nll=1.0)
        sides.append(measure_texts(Output({}, {"generations.parquet": table})))
    return sides


def _continue(rng: np.random.Generator, chain: np.ndarray, length: float, hesitates: float) -> list[int]:
    tokens: list[int] = []
    left, token, drawn = 20 + int(rng.gamma(6, length / 6)), 0, rng.random((LIMIT, 2))
    while left > 0 and len(tokens) < LIMIT:
        again, step = drawn[len(tokens)]
        token = WAIT if again < hesitates else int(chain[token, int(4 * step)])
        left += 6 if token == WAIT else -1
        tokens.append(token)
    return tokens


def _rows(strategy: str, task: str, texts: Sequence[str]) -> pd.DataFrame:
    settings = json.dumps({"strategy": strategy})
    known = {
        "strategy": strategy,
        "settings": settings,
        "task": task,
        "dataset": task,
        "draw": 0,
        "prompt": "Question?",
    }
    return pd.DataFrame({"item": range(len(texts)), "text": texts}).assign(**known)


def of_answers(sides: Texts) -> Found:
    """Return what is said of the answers of which side: 0, the base, to 2."""
    found: Found = {CONSTANT: set(), COSTS: set(), SPREAD: set(), RULE: set()}
    base = outcomes(sides[0], "accuracy").to_numpy()
    p = []
    for number, side in enumerate(sides):
        right = outcomes(side, "accuracy").to_numpy()
        known = floors(side, sides[0], SPEC, is_base=number == 0)
        if known.lost:
            found[CONSTANT].add(number)
            continue
        spread = stability.spread(right, "closed", SPEC)
        if spread and spread.p <= ERROR / len(sides):
            found[SPREAD].add(number)
        rule = signatures._spread(
            signatures.Texts(str(number), "closed", side, sides[0]), known, aligned=False, spec=SPEC
        )
        if rule.verdict == signatures.HOLDS:
            found[RULE].add(number)
        if number:
            measured = interaction(base, right, "closed", SPEC)
            p += [(each, number) for each in measured.p]
    if p:
        rates = significance.q_values(np.array([each for each, _ in p]))
        found[COSTS] = {number for (_, number), q in zip(p, rates, strict=True) if q <= ERROR}
    return found


def of_texts(sides: Texts) -> Found:
    """Return what is said of the texts of which side."""
    found: Found = {LONGER: set(), LOOPS: set(), RAISED: set(), RULE: set()}
    careful = dataclasses.replace(SPEC, confidence=1 - ERROR / 2)
    compared = [dict(changes(Sides.of(sides[0], side), 1.0, False, "open", SPEC)) for side in sides[1:]]
    for kind, metric in ((LONGER, RATIO), (LOOPS, CHANGE)):
        rates = significance.q_values(np.array([each[metric].p for each in compared]))
        found[kind] = {1 + number for number, q in enumerate(rates) if q <= ERROR}
    for number, side in enumerate(sides[1:], 1):
        if raised_words(str(number), "open", sides[0], side, careful):
            found[RAISED].add(number)
    nobody = sides[0].iloc[:0]
    asked = [
        question
        for number, side in enumerate(sides)
        for question in signatures._repetition(signatures.Texts(str(number), "open", side, nobody))
    ]
    found[RULE] = {int(test.variant) for test in signatures.decide(asked, SPEC) if test.verdict == signatures.HOLDS}
    return found


def column(make: Studies, judge: Callable[[Texts], Found], plant: Plant, seed: int, studies: int) -> dict[str, str]:
    """Count what is said in studies with a plant: finding -> share of the studies, as it is written."""
    key = [seed, zlib.crc32(plant.name.encode())]
    said = [judge(make(np.random.default_rng([*key, run]), plant)) for run in range(studies)]
    right = {kind: {1} if kind in plant.effects else set() for kind in said[0]}
    found = {}
    for kind, expected in right.items():
        share = f"{100 * np.mean([1 in each[kind] for each in said]):.1f} %"
        found[kind] = f"**{share}**" if expected else share
    wrong = np.mean([any(variants - right[kind] for kind, variants in each.items()) for each in said])
    return {**found, "anything that is wrong": f"{100 * wrong:.1f} %"}


def lines_of(columns: dict[str, dict[str, str]]) -> list[str]:
    """Return a table as lines of Markdown: lines are findings, columns plants."""
    lines = ["| said | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    kinds = next(iter(columns.values()))
    return [*lines, *(f"| {kind} | {' | '.join(each[kind] for each in columns.values())} |" for kind in kinds)]


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding_rules")
    parser.add_argument("--studies", type=int, default=200, help="studies without a plant; with one, a quarter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into a document")
    given = parser.parse_args()
    lines: list[str] = []
    for make, judge, plants in ((answered, of_answers, OF_CLOSED), (written, of_texts, OF_OPEN)):
        columns = {}
        for plant in plants:
            # Power takes fewer studies than a small share of errors.
            studies = given.studies if plant == Plant("nothing") else given.studies // 4
            columns[f"{plant.name}, {studies} studies"] = column(make, judge, plant, given.seed, studies)
        lines += [*lines_of(columns), ""]
    print("\n".join(lines))
    if given.write:
        marked.write(given.write, BEGIN, END, lines)


if __name__ == "__main__":
    main()
