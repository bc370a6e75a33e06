"""Sources of data sets as the steps get them."""

from __future__ import annotations

import json

import pytest

from hemorrhage.data.source import DataSource, as_json


@pytest.mark.parametrize(
    "data",
    [{"source": "embedded"}, {"source": "mirror", "path": "hf"}, {"source": "hub", "revisions": {"a/b": "0" * 40}}],
)
def test_a_source_is_the_same_on_the_command_line(data: DataSource) -> None:
    assert json.loads(json.dumps(as_json(data))) == data
