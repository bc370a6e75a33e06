"""What is wrong with a user's file is one plain sentence that names the key or the line, and what is allowed."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hemorrhage.study.wording import COMMIT, REPOSITORY, first_error, yaml_error


class Hub(BaseModel):
    """One of two sources."""

    source: Literal["hub"]
    id: Annotated[str, Field(pattern=REPOSITORY)]
    revision: Annotated[str, Field(pattern=COMMIT)]


class Path(BaseModel):
    """The other, whose key is called as it is."""

    source: Literal["path"]
    path: str


def form(entry: object) -> str:
    """What an entry of a list is."""
    return "name" if isinstance(entry, str) else "file" if isinstance(entry, dict) else "number"


class Schema(BaseModel):
    """Every sort of value that params.yaml has."""

    model_config = ConfigDict(extra="forbid")

    count: Annotated[int, Field(gt=0, lt=9)] = 1
    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    exact: bool = True
    code: Annotated[str, Field(pattern="^x$")] = "x"
    names: str | Annotated[list[str], Field(min_length=1)] = "a"
    layers: Literal["low", "high"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2)] = "low"
    windows: Annotated[int, Field(ge=2)] | Literal["all"] = "all"
    chosen: Annotated[dict[str, int], Field(min_length=1)] = {"a": 1}
    model: Annotated[Hub | Path, Field(discriminator="source")] | None = None
    corpora: list[Annotated[Annotated[str, Tag("name")] | Annotated[Path, Tag("file")], Discriminator(form)]] = []

    @model_validator(mode="after")
    def _agree(self) -> Schema:
        if self.count == 8 and not self.exact:
            raise ValueError("8 of them have to be exact")
        return self


class Nested(BaseModel):
    """Needs its keys."""

    model_config = ConfigDict(extra="forbid")

    window: int
    windows: int
    inner: Schema


def said(content: object, schema: type[BaseModel] = Schema, prefix: str = "") -> str:
    with pytest.raises(ValidationError) as error:
        schema.model_validate(content)
    return first_error(error.value, content, prefix)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"count": "many"}, "count: must be a whole number (got 'many')"),
        ({"count": 1.5}, "count: must be a whole number (got 1.5)"),
        ({"count": 0}, "count: must be more than 0 (got 0)"),
        ({"count": 9}, "count: must be less than 9 (got 9)"),
        ({"share": "x"}, "share: must be a number (got 'x')"),
        ({"share": -1}, "share: must be at least 0 (got -1)"),
        ({"share": 2}, "share: must be at most 1 (got 2)"),
        ({"share": float("nan")}, "share: must be a finite number (got nan)"),
        ({"exact": 3}, "exact: must be true or false (got 3)"),
        ({"code": "y"}, "code: must be of the form ^x$ (got 'y')"),
        ({"names": 3}, "names: must be a text or a list (got 3)"),
        ({"names": []}, "names: must be a text or a list of at least 1 entry (got [])"),
        ({"names": ["a", 3]}, "names.1: must be a text (got 3)"),
        ({"layers": "mid"}, "layers: must be 'low' or 'high' or a list (got 'mid')"),
        ({"layers": [0, -1]}, "layers.1: must be at least 0 (got -1)"),
        ({"layers": [0]}, "layers: must be 'low' or 'high' or a list of at least 2 entries (got [0])"),
        ({"windows": 1}, "windows: must be at least 2 or 'all' (got 1)"),
        ({"windows": "some"}, "windows: must be a whole number or 'all' (got 'some')"),
        ({"chosen": []}, "chosen: must be keys with values (got [])"),
        ({"chosen": {}}, "chosen: must be keys with values, at least 1 entry (got {})"),
        ({"chosen": {"a": "x"}}, "chosen.a: must be a whole number (got 'x')"),
        ({"model": "x"}, "model: must be keys with values (got 'x')"),
        ({"model": {"path": "x"}}, "model.source: missing"),
        ({"model": {"source": "web"}}, "model.source: must be one of 'hub', 'path' (got 'web')"),
        ({"model": {"source": "path"}}, "model.path: missing"),
        ({"model": {"source": "path", "path": 3}}, "model.path: must be a text (got 3)"),
        (
            {"model": {"source": "hub", "id": "a", "revision": "main"}},
            "model.id: must be of the form owner/name (got 'a'); and 1 more",
        ),
        (
            {"model": {"source": "hub", "id": "a/b", "revision": "main"}},
            "model.revision: must be the 40 hexadecimal digits of a commit (got 'main')",
        ),
        ({"corpora": ["prose", 3]}, "corpora.1: must be a name or a file (got 3)"),
        ({"corpora": [{"source": "path"}]}, "corpora.0.path: missing"),
        ({"colour": 3}, "colour: unknown key"),
    ],
)
def test_a_finding_is_a_plain_sentence(content: object, sentence: str) -> None:
    assert said(content) == sentence


def test_a_key_that_is_misspelt_is_named_first_and_others_are_counted() -> None:
    content = {"windwo": 3, "windows": "x", "inner": {"count": 0}}
    assert said(content, Nested) == "windwo: unknown key, window is missing; and 3 more"


def test_a_prefix_comes_before_the_keys_and_alone_where_settings_disagree() -> None:
    assert said({"count": 0}, prefix="compress.rtn.") == "compress.rtn.count: must be more than 0 (got 0)"
    assert said({"count": 8, "exact": False}, prefix="compress.rtn.") == "compress.rtn: 8 of them have to be exact"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: |\n  x\n  y\n", "line 3: the key a is there twice"),
        ("s:\n  rtn: {bits: 1}\n  rtn: {bits: 1,\n    x: 2}\n", "line 3: the key rtn is there twice"),
        ("a: [1\nb: 2", "line 2: not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        (
            "a: 1\n---\nb: 2",
            "line 2: not YAML: expected a single document in the stream, but found another document",
        ),
        ("x: \x01", "not YAML: unacceptable character #x0001: special characters are not allowed"),
    ],
)
@pytest.mark.parametrize("kind", ["safe", "rt"])
def test_a_text_that_is_not_yaml_is_named_by_its_line(text: str, sentence: str, kind: str) -> None:
    with pytest.raises(YAMLError) as error:
        YAML(typ=kind).load(text)
    assert yaml_error(error.value).startswith(sentence)
    assert "\n" not in yaml_error(error.value)
