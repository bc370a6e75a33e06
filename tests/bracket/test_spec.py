"""Settings of the bracket step."""

from __future__ import annotations

import json

import pytest

from hemorrhage.bracket.spec import Free, Spec


def test_a_spec_is_read_from_json() -> None:
    free = {"rtn-5": {"sweep": "rtn", "values": {"bits": 5}, "severity": 5}}
    curve = {"name": "rtn", "axis": "bits", "listed": {"rtn-8": 8}, "free": free}
    spec = Spec.parse(json.dumps({"budget": {"kl": 0.1}, "windows": 4, "allowance": 2, "curves": [curve]}))
    assert spec.curves[0].free["rtn-5"] == Free("rtn", {"bits": 5}, 5.0)
    assert spec.curves[0].falls


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="allowance"):
        Spec.parse('{"budget": {}, "windows": 4, "curves": []}')
