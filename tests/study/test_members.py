"""The models of a study: which a list of values makes, what they are called, which repeat one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hemorrhage.study import members
from hemorrhage.study import params as config
from tests.study.test_params import DEFAULT

CONTENT = {
    **DEFAULT,
    "compress": {"rtn": {"method": "rtn", "bits": [4], "group_size": "channel", "symmetric": False}},
    "decode": {**DEFAULT["decode"], "variants": []},
    "mitigate": {**DEFAULT["mitigate"], "variants": []},
}
"""Fits any model."""

WHEEL = {"source": "wheel", "name": "smollm2-135m-instruct"}


def written(folder: Path, **content: Any) -> Path:
    file = folder / "params.yaml"
    several = {**CONTENT, "model": {"source": "models"}, **content}
    with file.open("w", encoding="utf-8") as stream:
        YAML().dump(several, stream)
    return file


def test_a_list_of_values_makes_a_model_of_each() -> None:
    expanded = members.expand(
        {"norm": {"source": "trained", "recipe": ["pre", "post"], "seed": [0, 1]}, "known": WHEEL}
    )
    assert list(expanded) == ["norm-pre-0", "norm-pre-1", "norm-post-0", "norm-post-1", "known"]
    factors, model = expanded["norm-post-1"]
    assert factors == {"model": "norm", "recipe": "post", "seed": 1}
    assert model == {"source": "trained", "recipe": "post", "seed": 1}
    assert expanded["known"] == ({"model": "known"}, WHEEL)


def test_seeds_and_folders_repeat_a_model(tmp_path: Path, tiny: Path) -> None:
    copies = []
    for name in ("one", "two"):
        copies.append(tmp_path / name)
        copies[-1].symlink_to(tiny)
    file = written(tmp_path, models={"copy": {"source": "path", "path": list(map(str, copies))}, "wheel": WHEEL})
    read = members.read(file)
    assert [(each.name, each.group) for each in read] == [
        ("copy-one", "copy"),
        ("copy-two", "copy"),
        ("wheel", "wheel"),
    ]
    assert [each.params.model.source for each in read] == ["path", "path", "wheel"]


def test_one_model_has_no_name(tmp_path: Path) -> None:
    file = written(tmp_path, model=WHEEL)
    (only,) = members.read(file)
    assert only.name == only.group == ""
    assert only.params == config.read(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"models": {}}, "models: must name at least one model"),
        ({"models": {"A b": WHEEL}}, "models.A b: a model's name is of a-z"),
        ({"models": {"a": {**WHEEL, "name": []}}}, "models.a.name: an empty list makes no model"),
        ({"models": {"a": "wheel"}}, "models.a: must be keys with values"),
        ({"models": {"a": {**WHEEL, "name": "gpt"}}}, "models.a.name: must be 'smollm2-135m-instruct'"),
        ({"models": {"a": WHEEL}, "screen": {"windows": 4, "allowance": 1}}, "screen.windows: must be 0"),
        ({"model": WHEEL, "models": {"a": WHEEL}}, "models: has entries, and model.source is wheel"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(config.ConfigError, match=r"params\.yaml") as error:
        members.read(written(tmp_path, **content))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_asks_of_one_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="this asks of one model, and `models` has several"):
        config.read(written(tmp_path, models={"a": WHEEL}))
