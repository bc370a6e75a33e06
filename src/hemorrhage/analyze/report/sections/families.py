"""Families of methods as the page names and orders them."""

from __future__ import annotations

from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.compress.info import FAMILIES


def family_name(family: str) -> str:
    """Return the title of a family."""
    return FAMILIES[family].title if family in FAMILIES else family.capitalize() or "Other"


def families(inputs: Inputs) -> list[str]:
    """List the families of a study in the page's order, unknown ones last."""
    present = dict.fromkeys(variant.family for variant in inputs.variants.values() if variant.name != BASE)
    known = [family for family in FAMILIES if family in present]
    return known + [family for family in present if family not in FAMILIES]
