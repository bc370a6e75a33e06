"""Advice on the order of work: compress by one kind first, and combine two kinds afterwards.

A combination is a variant of one family made on a variant of another. The advice is two claims. At equal bytes one kind
alone does less damage than both. And a combination does more damage than either of its parts alone, so that runs of one
kind say which combinations are not worth making.
"""

from __future__ import annotations

from collections.abc import Iterator

from hemorrhage.analyze.axes import failure
from hemorrhage.analyze.inputs import BASE, Variant
from hemorrhage.analyze.verdicts.evidence import Evidence, Finding, Pair, compare
from hemorrhage.analyze.verdicts.mapping import COMPRESSION, MODIFICATIONS, is_identity

FAMILIES = MODIFICATIONS[COMPRESSION]


def one_kind(evidence: Evidence) -> Finding:
    """Compare each combination with the largest variant of one kind, by a method of its two, of no more bytes."""
    pairs = []
    for combined, first in _combinations(evidence):
        alone = [
            each
            for each in evidence.variants(*FAMILIES)
            if each.method in (combined.method, first.method) and evidence.size(each) <= evidence.size(combined)
        ]
        if alone:
            pairs.append(Pair(combined, max(alone, key=evidence.size)))
    return compare(evidence, pairs, "combinations of two kinds with one kind of no more bytes")


def parts(evidence: Evidence) -> Finding:
    """Compare each combination with both of its parts alone; a part that changes nothing says nothing."""
    pairs = []
    for combined, first in _combinations(evidence):
        second = [
            each
            for each in evidence.variants(combined.family)
            if each.method == combined.method and _same_strength(combined, each)
        ]
        pairs += [Pair(combined, part) for part in (first, *second[:1]) if not is_identity(evidence, part)]
    return compare(evidence, pairs, "combinations of two kinds with one part alone")


def _combinations(evidence: Evidence) -> Iterator[tuple[Variant, Variant]]:
    """Yield each measured combination, and the variant of the base that it was made on."""
    variants = evidence.inputs.variants
    for combined in variants.values():
        first = variants.get(combined.on)
        if first is None or first.name == BASE or first.on != BASE or combined.is_control or first.is_control:
            continue
        both = combined.family in FAMILIES and first.family in FAMILIES and combined.family != first.family
        if both and failure(evidence.inputs, combined) is None and evidence.damage(combined.name) is not None:
            yield combined, first


def _same_strength(combined: Variant, alone: Variant) -> bool:
    """Whether a variant of the base has the settings of the combination's second part; what only keeps zeros aside."""
    settings = [{**variant.settings, "keep_zeros": None} for variant in (combined, alone)]
    return settings[0] == settings[1]
