"""What answers to closed-ended prompts are no evidence of: constants, guessing, and penalties on the prompts' format.

A variant that gives one answer more often than the base does, and to most items, no longer does the task: what is left
of its accuracy is how often that answer is right. A strategy that punishes repetition punishes the right answer where
the answer continues the format of the prompt: after ``3 * 1 = 3``, newline, ``7 * 1 =``, a tokenizer that splits digits
off goes on with a space, and the prompt has a space after its other ``=``. Such answers tell of the penalty, and not of
arithmetic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hemorrhage.analyze.rows.findings import allowed
from hemorrhage.analyze.rows.survival import greedy_texts
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import significance

MOST = 0.5
"""Share of the items above which one answer is a constant, if it is more frequent than the base's."""

PUNISHED = 0.1
"""Share of the items whose right answer is punished, from which a strategy is no evidence."""

NEAR = 8
"""Pieces of text within which an answer is the beginning of the text, in the format of the prompt."""

PIECE = re.compile(r" ?[^\W\d_]+|\d| ?(?:[^\w\s]|_)|\s")
"""Text as byte-pair encodings that split digits cut it: words and signs with the space before them, digits one by one,
other whitespace alone."""

STATUSES = frozenset({"passed", "failed", "error", "timeout", "memory", "blocked"})
"""What became of a program: a code task's answers are no answers."""


@dataclass(frozen=True)
class Constant:
    """The ``answer`` that a variant gives more often than the base does: in so many texts of both, with the
    p-value of so large an excess."""

    answer: str
    count: int
    texts: int
    base_count: int
    p: float

    @property
    def share(self) -> float:
        """The answer's share of the variant's texts."""
        return self.count / self.texts


@dataclass(frozen=True)
class Floors:
    """Strategy -> why its answers are no evidence (``punished``), or have nothing to lose (``guessing``).

    ``constant``: the variant's most excessive answer, None for the base and for programs; ``lost``: why the variant no
    longer does the task, or empty.
    """

    punished: dict[str, str] = field(default_factory=dict)
    guessing: dict[str, str] = field(default_factory=dict)
    constant: Constant | None = None
    lost: str = ""

    @property
    def left_out(self) -> dict[str, str]:
        """Strategies under which accuracies are not compared with the base's, and why."""
        return {**self.guessing, **self.punished}

    def evidence(self, strategies: Sequence[str]) -> list[str]:
        """Return those of ``strategies`` whose accuracies tell of the model."""
        return [] if self.lost else [name for name in strategies if name not in self.punished]

    def compared(self, strategies: Sequence[str]) -> list[str]:
        """Return those of ``strategies`` whose accuracies are compared with the base's."""
        return [] if self.lost else [name for name in strategies if name not in self.left_out]


def floors(texts: pd.DataFrame, base: pd.DataFrame, spec: Spec, is_base: bool = False, tests: int = 1) -> Floors:
    """Find what one data set's answers of a variant, beside the base's to the same items, are no evidence of.

    Frames have ``strategy, settings, item, prompt, text, answer, correct``. ``tests``: variants times data sets of the
    study that may have a constant answer.
    """
    if set(texts["answer"]) <= STATUSES:
        return Floors()
    known = rights(base)
    unfit = punished(base, known), guessing(base, known, spec)
    if is_base:
        return Floors(*unfit)
    excess = constant(_plain(texts), _plain(base), spec)
    lost = ""
    if excess and excess.p <= allowed(spec, tests) and excess.share > MOST:
        said = f"answers {excess.answer!r}" if excess.answer else "gives no answer"
        lost = f"{said} on {excess.count} of {excess.texts}, the base on {excess.base_count} (p {excess.p:.2g})"
    return Floors(*unfit, excess, lost)


def _plain(texts: pd.DataFrame) -> pd.DataFrame:
    """Return the greedy texts, which show what a model answers without chance; all where there are none."""
    greedy = greedy_texts(texts)
    return greedy if len(greedy) else texts


def rights(texts: pd.DataFrame) -> pd.DataFrame:
    """Return the right answer of each item that any text got right: ``answer``, and that whole ``text``, by item."""
    correct = texts[texts["correct"]]
    return correct.drop_duplicates("item").set_index("item")[["answer", "text", "prompt"]]


def constant(answers: pd.DataFrame, base: pd.DataFrame, spec: Spec) -> Constant | None:
    """Find the answer that is most in excess of the base's, on the items of both; None where there are none.

    If the alteration does nothing, an item's answers are as likely to be the other model's. The statistic is the
    largest excess over all answers, so that picking one is part of the test.
    """
    ours, theirs = (pd.crosstab(side["item"], side["answer"]) for side in (answers, base))
    items = ours.index.intersection(theirs.index)
    if not len(items):
        return None
    names = ours.columns.union(theirs.columns)
    ours, theirs = (side.reindex(index=items, columns=names, fill_value=0) for side in (ours, theirs))
    net = ours.to_numpy() - theirs.to_numpy()
    largest = int(net.sum(axis=0).argmax())
    return Constant(
        answer=str(names[largest]),
        count=int(ours.iloc[:, largest].sum()),
        texts=int(ours.to_numpy().sum()),
        base_count=int(theirs.iloc[:, largest].sum()),
        p=_largest_excess(net, spec.seed),
    )


def _largest_excess(net: np.ndarray, seed: int) -> float:
    """p-value of the largest column sum of ``net`` [items, answers] under random signs of the items."""
    net = net[(net != 0).any(axis=1)]
    reached = net.sum(axis=0).max(initial=0)
    if len(net) <= significance.EXACT_BLOCKS:
        signs = 1 - 2 * (np.arange(2 ** len(net))[:, None] >> np.arange(len(net)) & 1)
        return float(np.mean((signs @ net).max(axis=1, initial=0) >= reached))
    signs = np.random.default_rng([seed, 4]).choice([-1, 1], (significance.FLIPS, len(net)))
    return float((1 + ((signs @ net).max(axis=1) >= reached).sum()) / (1 + significance.FLIPS))


def guessing(base: pd.DataFrame, known: pd.DataFrame, spec: Spec) -> dict[str, str]:
    """Name the strategies under which the base is not right more often than the best constant answer, and say so."""
    items = base["item"].nunique()
    best = int(known["answer"].str.casefold().value_counts().max()) if len(known) else 0
    reasons = {}
    for strategy, texts in base.groupby("strategy", sort=False):
        # Draws of one item are not independent: their mean is one answer.
        right = float(texts.groupby("item")["correct"].mean().sum())
        p = float(stats.binom.sf(np.ceil(right) - 1, items, best / items)) if items else 1.0
        if p > 1 - spec.confidence:
            reasons[str(strategy)] = f"the base is right on {right:.3g} of {items}, the best constant answer on {best}"
    return reasons


def punished(texts: pd.DataFrame, known: pd.DataFrame) -> dict[str, str]:
    """Name the strategies whose penalty punishes right answers for the prompts' own format, and say on how many."""
    reasons = {}
    for strategy, settings in texts.drop_duplicates("strategy").set_index("strategy")["settings"].items():
        order = punished_order(json.loads(settings))
        if order is None:
            continue
        judged = [repeats(row.prompt, row.text, row.answer, order) for row in known.itertuples()]
        hit, begun = sum(each is True for each in judged), sum(each is not None for each in judged)
        if begun and hit >= PUNISHED * len(judged):
            reasons[str(strategy)] = (
                f"its penalty punishes the right answer of {hit} of {len(judged)} items for the format of the prompt"
            )
    return reasons


def punished_order(settings: Mapping[str, Any]) -> int | None:
    """Return how long the shortest n-grams are that a strategy's penalty punishes in a text and its prompt; None: none.

    Penalties on generated tokens alone (frequency, presence) do not see the prompt. A penalty on states (``alpha`` and
    ``k`` without ``n``) punishes what follows the same token as before, and one that backs off (``beta``) pairs.
    """
    if (settings.get("repetition_penalty") or 1.0) != 1.0:
        return 1
    if settings.get("no_repeat_ngram"):
        return int(settings["no_repeat_ngram"])
    if not settings.get("alpha") or "k" not in settings:
        return None
    return 2 if "beta" in settings else int(settings.get("n", 2))


def repeats(prompt: str, text: str, answer: str, order: int) -> bool | None:
    """Return whether a right text repeats, up to its answer, n-grams of the prompt; None where the answer comes later.

    A worked solution is a text of its own, in no format of its prompt.
    """
    if not answer or answer not in text:
        return None
    begun = PIECE.findall(text[: text.index(answer) + len(answer)])
    if len(begun) > NEAR:
        return None
    before = PIECE.findall(prompt)
    seen = {tuple(before[i : i + order]) for i in range(len(before) - order + 1)}
    pieces = [*before, *begun]
    return any(tuple(pieces[i - order + 1 : i + 1]) in seen for i in range(len(before), len(pieces)))
