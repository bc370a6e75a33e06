"""The contract of a method: every setting is in its damage curve or its severity, and one file makes a method."""

from __future__ import annotations

import itertools
import types
import typing
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from hemorrhage.compress.catalogue import method_of, module_of
from hemorrhage.compress.info import ARMS, FAMILIES, MethodInfo
from hemorrhage.compress.method import SHUFFLED, Method, Settings, describe
from hemorrhage.models.engines import STORED
from hemorrhage.study.registry import METHODS
from tests.conftest import ROOT

NUMBERS = (1, 2, 3, 4, 5, 6, 8, 16, 32, 64, 256, 0.0005, 0.02, 0.05, 0.1, 0.3, 0.4, 0.6, 0.9, 2.0, 4.0, 12.0)
OTHERS = (True, False, "channel", 0.35, "2:4", "4:8", (2, 4), (3, 4, 8), ("fp8", "dense"))
CONSTANT = {
    ("rotation", "keep_zeros"),
    ("external", "files"),
    ("gguf_types", "mix"),
    ("autoround", "inputs"),
    ("autoround", "block_scales"),
}
"""Settings that can have one value only: a rotation leaves no weight zero, AutoRound learns its scales and rounds no
inputs. Or none goes with every model, or one with the type of an example."""

ABSENT = ("sequential", "embeddings")
"""Settings that a method may lack and a comparison names: it has what is their default elsewhere."""


def literals(annotation: Any) -> Iterator[Any]:
    """The values that an annotation names."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for part in get_args(annotation):
            yield from literals(part)


def others(settings: Settings, example: dict[str, Any], name: str) -> Iterator[Settings]:
    """Valid settings that differ from those of an example in the setting ``name``."""
    named = literals(type(settings).model_fields[name].annotation)
    for value in (*named, *NUMBERS, *OTHERS, None):
        try:
            other = type(settings).model_validate({**example, name: value})
        except ValidationError:
            continue
        if getattr(other, name) != getattr(settings, name):
            yield other


def same_but(name: str, settings: Settings, other: Settings) -> bool:
    """A severity may imply another setting, as the name of a mix of types does."""
    return settings.model_dump(exclude={name}) == other.model_dump(exclude={name})


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return method_of(request.param)


def test_a_method_is_known_by_its_file(method: Method) -> None:
    assert module_of(method.name) == f"hemorrhage.compress.methods.{method.family}.{method.name}"
    assert method.family in FAMILIES
    assert method.info.title
    assert method.info.summary
    assert set(method.info.storage) <= set(STORED)
    assert {each.arm for each in method.info.improves_on} <= set(ARMS)
    assert {each.plain for each in method.info.improves_on} <= {"", *METHODS}


def test_every_family_has_a_folder_and_every_file_a_line() -> None:
    files = {(path.parent.name, path.stem) for path in (ROOT / "src/hemorrhage/compress/methods").glob("*/[a-z]*.py")}
    assert files == {(method_of(name).family, name) for name in METHODS}
    assert {family for family, _ in files} == set(FAMILIES)


def test_every_setting_is_in_the_curve_and_in_the_label(method: Method) -> None:
    found: dict[str, list[Settings]] = {name: [] for name in method.settings.model_fields}
    for settings, example in zip(method.examples, method.info.examples, strict=True):
        for name in found:
            for other in others(settings, dict(example), name):
                found[name].append(other)
                assert other.label != settings.label, f"{name} is not in the label {other.label!r}"
                if name != settings.severity_field:
                    assert other.identity != settings.identity, f"{name} is not in the curve's identity"
                    assert other.curve != settings.curve, f"{name} is not in the curve {other.curve!r}"
                elif other.severity_pattern == settings.severity_pattern and same_but(name, settings, other):
                    assert (other.identity, other.curve) == (settings.identity, settings.curve)
                    assert other.severity != settings.severity
    assert {(method.name, name) for name, tried in found.items() if not tried} <= CONSTANT
    everything = {*method.examples, *itertools.chain(*found.values())}
    places = {(settings.identity, settings.severity) for settings in everything}
    assert len(places) == len(everything) == len({settings.label for settings in everything})
    names = {settings.identity: settings.curve for settings in everything}
    assert len(set(names.values())) == len(names)


def test_what_the_manifest_says_is_read_back(method: Method) -> None:
    for settings in method.examples:
        manifest = describe(method, settings)
        info = MethodInfo.of_manifest(manifest)
        assert (info.title, info.values, info.by_blocks) == (
            method.info.title,
            method.info.values,
            method.info.by_blocks,
        )
        assert [each.same for each in info.improves_on] == [each.same for each in method.info.improves_on]
    assert MethodInfo.of_manifest({"method": "old"}).title == "old"


def test_a_control_is_the_same_but_shuffled(method: Method) -> None:
    for settings in method.examples:
        control = settings.shuffled_control
        if control is not None:
            assert control.is_control
            assert settings.model_dump(exclude={SHUFFLED}) == control.model_dump(exclude={SHUFFLED})
            assert settings.identity != control.identity


def test_settings_that_a_comparison_names_exist(method: Method) -> None:
    for each in method.info.improves_on:
        plain = method_of(each.plain) if each.plain else method
        fields = [{*side.settings.model_fields, *ABSENT} for side in (method, plain)]
        assert {*each.same, *each.changed, *each.treated} <= fields[0]
        assert {*each.same, *each.changed} <= fields[1]


class Made(Settings):
    """Settings without any wording of their own."""

    axis: ClassVar[str] = "bits"
    severity_field: ClassVar[str] = "bits"

    bits: int = 4
    damp: float = 0.01
    blocks: tuple[int, ...] = (1, 2)
    fast: bool = True
    name: str | None = None


def test_words_are_derived_where_a_method_has_none() -> None:
    assert (Made().curve, Made().identity, Made().label) == ("", "{}", "bits 4")
    made = Made(bits=3, damp=0.123456789, blocks=(3,), fast=False, name="x")
    assert made.curve == "damp 0.123456789, blocks 3, no fast, name x"
    assert made.label == f"bits 3, {made.curve}"
    assert made.identity == '{"blocks": [3], "damp": 0.123456789, "fast": false, "name": "x"}'


def test_a_curve_can_not_be_written_by_hand() -> None:
    by_hand = {
        name: {"identity", "curve"} & set(vars(each))
        for name in METHODS
        for each in method_of(name).settings.__mro__
        if each not in (Settings, BaseModel, object)
    }
    assert not any(by_hand.values())
