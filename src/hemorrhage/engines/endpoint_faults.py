"""What is wrong with a server's log-probabilities and samples, one line each; an honest server has no line.

Some faults show in one answer: another model's name, other tokens, sums above 1, values that are rounded or cut. Others
need a second question: the same window again, its first half alone (a later token must not change what was before it),
tokens sampled at two temperatures. Another model behind the right name shows in none of these; that is what
hemorrhage.engines.identity is for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hemorrhage.engines.endpoint_dialects import Answer, Vocabulary
from hemorrhage.engines.topk import Floats

SAME = 0.05
"""Median difference in nats that kernels and batches make between two answers, at most."""

FALSE_ALARM = 1e-4
"""Probability that a check of sampled tokens names an honest server, at most."""

ENOUGH = 16
"""Positions from which a pattern in the values is no chance."""

EPSILON = 1e-3


def in_answer(
    answer: Answer, tokens: Sequence[int], vocabulary: Vocabulary, model: str, is_complete: bool = True
) -> list[str]:
    """List what one answer shows to be wrong; ``is_complete``: every token of the window should have its value."""
    faults = []
    if answer.model is not None and answer.model != model:
        faults.append(f"answers for the model {answer.model!r}, not for {model!r}")
    if answer.read is not None and answer.read != len(tokens):
        faults.append(
            f"reads {answer.read} tokens where {len(tokens)} were sent: it adds or drops some, as a template does"
        )
    missing = int(np.isnan(answer.target).sum())
    if is_complete and missing:
        faults.append(f"gives no log-probability for {missing} of the window's {len(answer.target)} tokens")
    faults += _other_tokens(answer, tokens, vocabulary)
    faults += _impossible(answer, tokens)
    return faults


def _other_tokens(answer: Answer, tokens: Sequence[int], vocabulary: Vocabulary) -> list[str]:
    if answer.tokens is not None and answer.tokens != tuple(tokens):
        return ["reads other tokens than it was sent"]
    if (answer.ids >= len(vocabulary)).any():
        return [f"has another vocabulary: it names token {answer.ids.max()}, and there are {len(vocabulary)}"]
    for position, text in enumerate(answer.texts or ()):
        if text and not vocabulary.is_text_of(text, tokens[position]):
            own = vocabulary.pieces[tokens[position]]
            return [f"has another vocabulary: token {tokens[position]} is {text[:40]!r} there and {own!r} here"]
    return []


def _impossible(answer: Answer, tokens: Sequence[int]) -> list[str]:
    """List what no softmax gives."""
    own = np.array(tokens[1:])[:, None] == answer.ids
    listed = own.any(1)
    given = np.where(np.isnan(answer.logprobs), -np.inf, answer.logprobs)
    target = np.where(np.isnan(answer.target), -np.inf, answer.target)
    if max(target.max(initial=-np.inf), given.max(initial=-np.inf)) > EPSILON:
        return ["gives log-probabilities above 0: scores that are not normalised, or probabilities"]
    sums = np.exp(given).sum(1) + np.where(listed, 0, np.exp(target))
    if sums.max(initial=0.0) > 1 + EPSILON:
        return [f"gives probabilities that sum to {sums.max():.3f} at one position"]
    is_known = listed & np.isfinite(target)
    twice = np.abs(np.where(own, given, 0).sum(1)[is_known] - target[is_known])
    is_misplaced = (~listed & (target > answer.cap + EPSILON)).any()
    if not answer.is_ordered or twice.max(initial=0.0) > EPSILON or is_misplaced:
        return ["gives the log-probabilities of some tokens to others: ranks, values and tokens do not agree"]
    return []


def in_values(answers: Sequence[Answer], vocabulary: int) -> list[str]:
    """List what the values of some answers show to be wrong: rounded, cut, normalised over the top k."""
    given = [np.concatenate([each.logprobs, each.target[:, None]], axis=1) for each in answers]
    values = np.concatenate([part[np.isfinite(part)] for part in given])
    missing = sum(int(np.isneginf(part).sum()) for part in given)
    values = values[values < 0]
    faults = []
    if len(values) >= ENOUGH:
        faults += _rounded(values)
        lowest = int((values == values.min()).sum())
        if lowest >= max(3, 0.02 * len(values)):
            faults.append(f"cuts log-probabilities at {values.min():g}: {lowest} tokens have exactly that")
    if missing:
        faults.append(f"cuts log-probabilities: {missing} are minus infinity or -9999")
    masses = np.concatenate([np.nansum(np.exp(each.logprobs), axis=1) for each in answers])
    top = max((each.logprobs.shape[1] for each in answers), default=0)
    if len(masses) >= ENOUGH and 0 < top < vocabulary and np.abs(masses - 1).max() < 1e-5:
        faults.append("normalises over the top k: their probabilities sum to 1 at every position")
    return faults


def _rounded(values: Floats) -> list[str]:
    for digits in range(5):
        if (np.abs(values * 10**digits - np.round(values * 10**digits)) < 1e-7 * 10**digits).all():
            return [f"rounds log-probabilities to {digits} decimals"]
    bits = values.astype(np.float32).view(np.uint32)
    for name, dropped in (("bfloat16", 16), ("float16", 13)):
        if (bits & ((1 << dropped) - 1) == 0).all():
            return [f"rounds log-probabilities to {name}"]
    return []


def limits(answers: Sequence[Answer], top: int) -> list[str]:
    """List what an honest server may do, and a user should know."""
    counts = np.concatenate([(each.ids >= 0).sum(1) for each in answers])
    # Where the window's own token is not among them, it may be added to them.
    given = int(counts.min(initial=top))
    if given < top:
        return [f"gives the top {given} where the top {top} were asked: KL is an interval from {given}"]
    return []


def between(first: Answer, second: Answer, what: str) -> list[str]:
    """List what two answers show that should be the same at their common positions; ``what``: how they were asked."""
    count = min(len(first.target), len(second.target))
    a, b = _likeliest(first)[:count], _likeliest(second)[:count]
    both = ~(np.isnan(first.target[:count]) | np.isnan(second.target[:count]))
    moved = np.concatenate([np.abs(a - b), np.abs(first.target[:count] - second.target[:count])[both]])
    moved = moved[np.isfinite(moved)]
    if len(moved) and np.median(moved) > SAME:
        return [f"{what}: log-probabilities differ by {np.median(moved):.2f} nats in the median"]
    return []


def _likeliest(answer: Answer) -> Floats:
    """Return the log-probability of the likeliest token, ``[n - 1]``; nan where there is none."""
    return answer.logprobs[:, 0] if answer.logprobs.shape[1] else np.full(len(answer.target), np.nan)


def in_greedy(answer: Answer, prompt: int) -> list[str]:
    """List what is wrong with tokens that were sampled at temperature 0; the answer is of the prompt with them."""
    margins = (_likeliest(answer) - answer.target)[prompt - 1 :]
    margins = np.where(np.isnan(answer.target[prompt - 1 :]), 1.0, np.maximum(margins, 0))
    if len(margins) and margins.mean() > SAME:
        least = int((margins > SAME).sum())
        return [f"ignores temperature 0: {least} of {len(margins)} sampled tokens are not the likeliest"]
    return []


def in_sampled(answer: Answer, prompt: int, temperature: float) -> list[str]:
    """List what is wrong with tokens that were sampled at a high temperature: always the likeliest."""
    scaled = answer.logprobs[prompt - 1 :] / temperature
    # Among the top k alone the likeliest is likelier than in the whole vocabulary: the bound is on the safe side.
    if not scaled.size or np.isnan(scaled[:, 0]).any():
        return []
    likeliest = scaled[:, 0] - np.log(np.nansum(np.exp(scaled), axis=1))
    is_greedy = (np.abs(_likeliest(answer) - answer.target)[prompt - 1 :] <= SAME).all()
    if is_greedy and likeliest.sum() < np.log(FALSE_ALARM):
        return [f"ignores temperature {temperature:g}: all {len(likeliest)} sampled tokens are the likeliest"]
    return []
