"""The models of a study that has several: each is the base of a study of its own, with all else the same.

    model: {source: models}
    models:
      before: {source: trained, recipe: norm_before, seed: [0, 1, 2]}
      after: {source: trained, recipe: norm_after, seed: [0, 1, 2]}

A list of values makes a model of each, as in a sweep: ``before-0``, ``before-1``. Those of one entry that differ by
their seed, or by the folder that they lie in, are repetitions of one another.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemorrhage.runtime.address import JsonValue
from hemorrhage.study import params as config
from hemorrhage.study.wording import NAME

SOURCE = "models"
"""The ``model.source`` of a study of several models."""

REPEATED = ("seed", "path")
"""Keys whose values make repetitions."""


@dataclass(frozen=True)
class Member:
    """A model of a study: its ``group`` is the entry of ``models`` with its listed values, but for what repeats it.

    ``factors``: the listed values, and the entry's name as ``model``.
    """

    name: str
    group: str
    factors: dict[str, JsonValue]
    params: config.Params


def read(path: Path = Path("params.yaml")) -> list[Member]:
    """Read a params.yaml of one or several models. Of one the member has no name. Raises config.ConfigError."""
    content = config.read_content(path)
    if not has_several(content):
        return [Member("", "", {}, config.parse(path, content))]
    try:
        expanded = expand(content.get("models"))
    except config.ConfigError as error:
        raise config.ConfigError(f"{path}: {error}") from None
    rest = {key: value for key, value in content.items() if key not in ("model", "models")}
    members = []
    for name, (factors, model) in expanded.items():
        try:
            params = config.parse(path, {**rest, "model": model})
        except config.ConfigError as error:
            entry, words = factors["model"], str(error).removeprefix(f"{path}: ")
            where = f"models.{entry}.{words.removeprefix('model.')}" if words.startswith("model.") else words
            raise config.ConfigError(f"{path}: {where} (of the model {name})") from None
        if params.screen.windows:
            raise config.ConfigError(f"{path}: screen.windows: must be 0 in a study of several models")
        members.append(Member(name, _group(factors), factors, params))
    return members


def has_several(content: Mapping[str, Any]) -> bool:
    """Tell whether the content of a params.yaml names several models."""
    model = content.get("model")
    return isinstance(model, Mapping) and model.get("source") == SOURCE


def expand(models: object) -> dict[str, tuple[dict[str, JsonValue], config.FreeSettings]]:
    """Return the factors and the content of ``model`` of each member by its name. Raises config.ConfigError."""
    if not isinstance(models, Mapping) or len(models) == 0:
        raise config.ConfigError("models: must name at least one model, because model.source is models")
    expanded: dict[str, tuple[dict[str, JsonValue], config.FreeSettings]] = {}
    for entry, content in models.items():
        if not re.match(NAME, str(entry)):
            raise config.ConfigError(f"models.{entry}: a model's name is of a-z, 0-9 and _")
        if not isinstance(content, Mapping):
            raise config.ConfigError(f"models.{entry}: must be keys with values, as model is (got {content!r})")
        lists = {key: value for key, value in content.items() if isinstance(value, list)}
        for key, listed in lists.items():
            if not listed:
                raise config.ConfigError(f"models.{entry}.{key}: an empty list makes no model")
        for point in itertools.product(*lists.values()):
            values = dict(zip(lists, point, strict=True))
            factors: dict[str, JsonValue] = {"model": str(entry), **values}
            name = "-".join(_in_name(key, value) for key, value in factors.items())
            if name in expanded:
                raise config.ConfigError(f"models.{entry}: two models are called {name}")
            expanded[name] = factors, {**content, **values}
    return expanded


def _in_name(key: str, value: JsonValue) -> str:
    written = Path(str(value)).name if key == "path" else str(value)
    return re.sub(r"[^a-z0-9_.]+", "_", written.lower())


def _group(factors: Mapping[str, JsonValue]) -> str:
    return "-".join(_in_name(key, value) for key, value in factors.items() if key not in REPEATED)
