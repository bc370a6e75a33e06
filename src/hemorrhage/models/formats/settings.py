"""What a config.json that somebody else wrote says of its weights: checked against a model of pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

Model = TypeVar("Model", bound="Entry")


class Entry(BaseModel):
    """An entry of a file: values are of the types that are declared, and what is not declared is no matter."""

    model_config = ConfigDict(strict=True, frozen=True)


def parse(model: type[Model], content: Mapping[str, object]) -> Model:
    """Return ``content`` as ``model``. Raises ValueError, one line that names the key, where it is not one."""
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"quantization_config's {key}: {first['msg']}") from None
