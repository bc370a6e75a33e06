"""Items of a confirmation: of the same templates, and in no group of which the evaluation has an item."""

from __future__ import annotations

import pytest

from hemorrhage.data.tasks.fresh import make_fresh
from hemorrhage.data.tasks.probes import TASKS, make
from hemorrhage.runtime.step import InputError


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("skip", [48, 50])
def test_fresh_items_are_none_of_the_first_and_in_none_of_their_groups(task: str, skip: int) -> None:
    first, fresh = make(task, skip, 0), make_fresh(task, 40, skip, 0)
    assert len(fresh) == 40
    assert [each["item"] for each in fresh] == list(range(40))
    assert not {each["prompt"] for each in first} & {each["prompt"] for each in fresh}
    assert not {each["group"] for each in first} & {each["group"] for each in fresh}


def test_as_many_are_made_as_the_templates_have() -> None:
    every = make_fresh("cloze", 100_000, 48, 0)
    assert 48 < len(every) < 100_000
    assert len({each["prompt"] for each in every}) == len(every)
    with pytest.raises(InputError, match="none is left"):
        make_fresh("cloze", 10, len(every) + 48, 0)
