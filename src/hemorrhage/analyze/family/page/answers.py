"""What the models of a study show, in sentences: which groups differ, what an outcome moves with, and what is open."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hemorrhage.analyze.family.effects import DIFFER, LEAST, Contrast, Effect, Movement
from hemorrhage.analyze.family.results import Results


def answers(results: Results) -> list[str]:
    """Write a sentence for every outcome in which something was shown, and one for what was not."""
    shown = [sentence for effect in results.effects for sentence in _of(effect)]
    tested = [effect for effect in results.effects if any(math.isfinite(each.p) for each in effect.contrasts)]
    silent = [effect for effect in tested if not any(each.verdict == DIFFER for each in effect.contrasts)]
    groups = {row.group for row in results.models}
    if len(groups) > 1 and not tested:
        shown.append(f"No two groups were compared: a comparison takes at least {LEAST} models of each.")
    elif silent:
        shown.append(
            f"In {len(silent)} of {len(tested)} outcomes no difference of two groups was shown, which is not to say "
            f"that there is none.{_power(silent)}"
        )
    return shown


def _power(silent: Sequence[Effect]) -> str:
    """Say what these studies would have shown of the damage of variants."""
    least = sorted(each.least_seen for each in silent if each.outcome.is_ratio and math.isfinite(each.least_seen))
    if not least:
        return ""
    middle = math.exp(least[len(least) // 2])
    return f" Of KL, four of five such studies would show a ratio of {middle:.3g}, in the middle one of these outcomes."


def _of(effect: Effect) -> Iterator[str]:
    differing = [each for each in effect.contrasts if each.verdict == DIFFER]
    where = f"{effect.outcome.name}, {effect.outcome.measure}"
    if differing:
        beyond = f" ({effect.disguise.sentence})" if effect.disguise else ""
        yield f"{where}: " + "; ".join(contrast(each, effect.outcome.is_ratio) for each in differing) + f"{beyond}."
    for movement in effect.movements:
        if movement.low > 0 or movement.high < 0:
            yield f"{where}: {moved(movement, effect.outcome.is_ratio)}."


def contrast(each: Contrast, is_ratio: bool) -> str:
    """Write the difference of two groups with its interval."""
    return f"{each.second} {amount(each.difference, each.low, each.high, is_ratio)} of {each.first}"


def amount(value: float, low: float, high: float, is_ratio: bool) -> str:
    """Write a difference with its interval, of logarithms as a ratio."""
    if is_ratio:
        return f"×{math.exp(value):.3g} ({math.exp(low):.3g} to {math.exp(high):.3g})"
    return f"{value:+.3g} ({low:+.3g} to {high:+.3g})"


def moved(movement: Movement, is_ratio: bool) -> str:
    """Write a slope with its interval."""
    per = "per tenfold" if movement.per_tenfold else "per unit of"
    slope = amount(movement.slope, movement.low, movement.high, is_ratio)
    return f"{slope} {per} {movement.factor}, over {movement.models} models"


def written(values: Sequence[float], is_ratio: bool) -> list[str]:
    """Write numbers of an outcome, of logarithms the numbers themselves."""
    return [f"{math.exp(value) if is_ratio else value:.3g}" if math.isfinite(value) else "" for value in values]
