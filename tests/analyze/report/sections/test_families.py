"""Names and order of families."""

from __future__ import annotations

from hemorrhage.analyze.report.sections.families import families, family_name
from hemorrhage.compress.info import FAMILIES
from tests.analyze.report.examples import inputs, variant


def test_a_family_has_its_title_and_an_unknown_one_its_name() -> None:
    assert family_name("moe") == FAMILIES["moe"].title
    assert family_name("sketching") == "Sketching"
    assert family_name("") == "Other"


def test_known_families_come_first_in_the_order_of_the_report() -> None:
    study = inputs(variant("x-1", family="sketching"), variant("lora", family="recovery"), variant("rtn-4"))
    assert families(study) == ["weight_quantization", "recovery", "sketching"]
