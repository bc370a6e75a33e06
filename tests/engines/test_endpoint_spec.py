"""A server as users name it: what is refused before it is called."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hemorrhage.engines.endpoint_spec import EndpointSpec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"openai": "ftp://127.0.0.1"}, "not an http or https URL"),
        ({"openai": "http://me:pass@127.0.0.1"}, "no user or password in a URL"),
        ({"openai": "http://127.0.0.1?key=1"}, r"without \? and #"),
        ({"openai": "http://example.org", "key_env": "TINY_KEY"}, "https only"),
        ({"key": "sk-1"}, "Extra inputs"),
        ({"top": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as raised:
        EndpointSpec.model_validate({"openai": "http://127.0.0.1", "model": "tiny", **settings})
    assert "me:pass" not in str(raised.value.errors(include_input=False))
