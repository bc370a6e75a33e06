"""What the variants write: texts of the base and of those that the decision is about, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from hemorrhage.analyze.budget import OUTSIDE
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.beside import Beside
from hemorrhage.analyze.verdicts.shipping import Verdict, pick


@dataclass(frozen=True)
class Texts:
    """The section: a role with a pair of texts, and how to get those of variants that were not decoded."""

    pairs: list[tuple[str, Beside]]
    missing: str


def section(study: Study) -> Texts:
    """Return the section of a study."""
    pairs, missing = [], []
    for role, name in roles(study.verdicts).items():
        beside = [each for each in study.decoded.beside if each.variant == name]
        if beside:
            # Of the texts that part, the one that parts at the median.
            pairs.append((role, next((each for each in beside if each.place == "median"), beside[0])))
        elif name not in study.inputs.decodes:
            missing.append(f"{name} ({role})")
    return Texts(pairs, _how(missing))


def roles(verdicts: list[Verdict]) -> dict[str, str]:
    """Return what a reader wants to read texts of -> the variant: each variant once."""
    picked = pick(verdicts)
    most = picked.size.bytes if picked else None
    smaller = sorted(
        (each for each in verdicts if each.is_usable and not each.inside and (most is None or each.size.bytes < most)),
        key=lambda each: (-each.size.bytes, each.binding.used if each.binding else 0.0),
    )
    past = [each for each in smaller if any(check.answer == OUTSIDE for check in each.checks)]
    chosen = {
        "the pick": picked,
        "the next smaller": next(iter(smaller), None),
        "the first past a limit": next(iter(past), None),
    }
    named: dict[str, str] = {}
    for role, verdict in chosen.items():
        if verdict is not None and verdict.variant.name not in named.values():
            named[role] = verdict.variant.name
    return named


def _how(missing: list[str]) -> str:
    if not missing:
        return ""
    names = ", ".join(each.partition(" (")[0] for each in missing)
    return f"Not decoded: {', '.join(missing)}. For their texts, add them to decode.variants in params.yaml: [{names}]."
