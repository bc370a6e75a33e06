"""Several plans in one folder of outputs: what they share, and where their reports go."""

from __future__ import annotations

import json

import pytest

from hemorrhage.study.family import Family
from hemorrhage.study.members import Member
from hemorrhage.study.plan import REPORTS
from tests.study.conftest import ONE


def test_models_share_what_does_not_depend_on_them(family: Family) -> None:
    a, b = family.plans["a-0"], family.plans["b"]
    assert a.names("tasks") == b.names("tasks")
    assert a.address("base", "base") != b.address("base", "base")
    assert family.owner("tasks", "agreement", b.address("tasks", "agreement")) == "a-0"
    assert family.owner("checkpoints", "rtn-4", b.address("checkpoints", "rtn-4")) == "b"
    assert family.owner("checkpoints", "rtn-4", a.address("checkpoints", "rtn-4")) == "a-0"
    with pytest.raises(KeyError):
        family.owner("checkpoints", "rtn-4", "0" * 12)


def test_each_has_reports_of_its_own(family: Family) -> None:
    assert not family.is_one
    assert f"hemorrhage.analyze {REPORTS / 'b'} " in family.plans["b"].rows_command()
    assert f"hemorrhage.analyze.report {REPORTS / 'b'} " in family.plans["b"].page_command()
    assert json.dumps({"group": "a", "factors": {"seed": 0}}) in family.rows_command()
    alone = Family([Member("", "", {}, ONE)])
    assert alone.is_one
    assert alone.plans[""].reports == REPORTS
    assert alone.addresses() == alone.plans[""].addresses()


def test_conclusions_move_with_every_model(family: Family) -> None:
    numbers = [each.rows for each in family.plans.values()]
    more = family.members["b"].params.model_copy(update={"cache_version": 2})
    moved = Family([family.members["a-0"], Member("b", "b", {}, more)])
    assert moved.plans["a-0"].rows == numbers[0]
    assert moved.rows != family.rows
    assert moved.page != family.page
    regrouped = Family([family.members["a-0"], Member("b", "a", {}, family.members["b"].params)])
    assert regrouped.rows != family.rows
