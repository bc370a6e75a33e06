"""How often the verdicts on decoding are wrong, and how often they find what is there, on made-up studies.

    python -m benchmarks.decoding_rules
    python -m benchmarks.decoding_rules --write docs/metrics.md

A study has a base and two variants, and each of them two data sets. Closed-ended: 48 items of a difficulty each, under
six strategies, answers are one of nine digits. Open-ended: texts of up to 128 tokens behind 48 prompts under two
strategies, of 60 words that follow one another by chains that each prompt draws anew. The second variant differs from
the base by chance alone; the first does what is planted. Nothing of these processes is in the analysis.

Each column is a plant, each line what is said of the first variant, bold where that is right. The last line counts
studies in which anything is said of any model that is not so. ``--write`` puts the table into a document.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import marked
from hemorrhage.analyze.inputs import Output
from hemorrhage.analyze.rows import findings, stability
from hemorrhage.analyze.rows.answers import Sides, changes
from hemorrhage.analyze.rows.decoding import measure_texts, outcomes
from hemorrhage.analyze.rows.findings import CHANGE, KINDS, RATIO
from hemorrhage.analyze.rows.floors import Floors, floors
from hemorrhage.analyze.rows.interaction import interaction
from hemorrhage.analyze.spec import Spec
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


CONSTANT, COSTS, SPREAD, LONGER, LOOPS, RAISED, *_ = KINDS
RULE, NO_RULE = "a rule holds", "a rule does not hold that does"
SAID = (CONSTANT, COSTS, SPREAD, LONGER, LOOPS, RAISED, RULE, NO_RULE)

PLANTS = (
    Plant("nothing"),
    Plant("one answer on 60 %", (CONSTANT,), answer=0.6),
    Plant("one strategy loses 35 points", (COSTS, SPREAD, RULE), strategy=0.35),
    Plant("all lose 25 points", all=0.25),
    Plant("odds of hesitation times 2", (LONGER, RAISED), odds=2.0),
    Plant("25 % of prompts loop", (LONGER, LOOPS), loop=0.25),
)


def answered(rng: np.random.Generator, plant: Plant) -> Texts:
    """Make the answers of the base and of two variants."""
    skill, truth = rng.beta(3, 2, ITEMS), 1 + rng.permutation(ITEMS) % 9
    sides = []
    for does in (PLANTS[0], plant, PLANTS[0]):
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
    for does in (PLANTS[0], plant, PLANTS[0]):
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


def judge(rng: np.random.Generator, plant: Plant) -> Found:
    """Make a study, and return what is said of which side: 0, the base, to 2."""
    found: Found = {kind: set() for kind in SAID}
    closed, opened = answered(rng, plant), written(rng, plant)
    variants, careful = range(1, len(closed)), findings.careful(SPEC, len(closed) - 1)
    known = [floors(side, closed[0], SPEC, side is closed[0], len(closed) - 1) for side in closed]
    p = pd.concat([_of_answers(closed, known, found), _of_texts(opened)], ignore_index=True)
    q = findings.corrected(p)
    kinds = {"accuracy_interaction": COSTS, findings.SPREAD_SD: SPREAD, RATIO: LONGER, CHANGE: LOOPS}
    for metric, number in p.loc[q <= ERROR, ["metric", "variant"]].itertuples(index=False):
        found[kinds[metric]].add(number)
    found[RAISED] = {number for number in variants if raised_words("v", "open", opened[0], opened[number], careful)}
    for test in signatures.decide(_questions(closed, known, opened), SPEC):
        if test.verdict == signatures.HOLDS:
            found[RULE].add(int(test.variant))
        # Of all rules, only that of the spread is true anywhere: where one strategy is far from the others.
        if test.verdict == signatures.FAILS and test.rule == "spread" and plant.strategy and test.variant == "1":
            found[NO_RULE].add(1)
    return found


def _of_answers(sides: Texts, known: Sequence[Floors], found: Found) -> pd.DataFrame:
    """Return the tests of answers; a side with one constant answer goes into ``found`` and is tested no further."""
    base, rows = outcomes(sides[0], "accuracy").to_numpy(), []
    for number, side in enumerate(sides):
        right = outcomes(side, "accuracy").to_numpy()
        if known[number].lost:
            found[CONSTANT].add(number)
            continue
        spread = stability.spread(right, "closed", SPEC)
        rows.append((number, findings.SPREAD_SD, findings.ALL_STRATEGIES, spread.p if spread else np.nan))
        if number:
            p = interaction(base, right, "closed", SPEC).p
            rows += [(number, "accuracy_interaction", name, each) for name, each in zip(CLOSED, p, strict=True)]
    return pd.DataFrame(rows, columns=["variant", "metric", "method", "p"]).assign(dataset="closed")


def _of_texts(sides: Texts) -> pd.DataFrame:
    rows = []
    for number, side in enumerate(sides[1:], 1):
        compared = dict(changes(Sides.of(sides[0], side), 1.0, False, "open", SPEC))
        rows += [(number, metric, findings.ALL_STRATEGIES, compared[metric].p) for metric in (RATIO, CHANGE)]
    return pd.DataFrame(rows, columns=["variant", "metric", "method", "p"]).assign(dataset="open")


def _questions(closed: Texts, known: Sequence[Floors], opened: Texts) -> Iterator[signatures.Asked]:
    nobody = opened[0].iloc[:0]
    for number, (answers, texts) in enumerate(zip(closed, opened, strict=True)):
        subject = signatures.Texts(str(number), "closed", answers, nobody)
        yield signatures._spread(subject, known[number], aligned=False, spec=SPEC)
        yield from signatures._repetition(signatures.Texts(str(number), "open", texts, nobody))


def column(plant: Plant, seed: int, studies: int) -> dict[str, str]:
    """Count what is said in studies with a plant: finding -> share of the studies, as it is written."""
    key = [seed, zlib.crc32(plant.name.encode())]
    said = [judge(np.random.default_rng([*key, run]), plant) for run in range(studies)]
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
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into a document")
    given = parser.parse_args()
    columns = {}
    for plant in PLANTS:
        # Power takes fewer studies than a small share of errors.
        studies = given.studies if plant == PLANTS[0] else given.studies // 4
        columns[f"{plant.name}, {studies} studies"] = column(plant, given.seed, studies)
    lines = [*lines_of(columns), ""]
    print("\n".join(lines))
    if given.write:
        marked.write(given.write, BEGIN, END, lines)


if __name__ == "__main__":
    main()
