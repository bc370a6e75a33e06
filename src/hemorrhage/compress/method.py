"""The contract of a compression method, which is one file: ``compress/methods/<family>/<method>.py``.

The file holds ``Settings``, a subclass of the one here, a function ``alter(model, settings, context)`` that alters a
model in place and may return entries for the manifest, and ``METHOD``, which joins both with a ``MethodInfo``. Its
name and its folder are the method's name and family. A line in study/registry.py makes it known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from hemorrhage.compress.info import MethodInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hemorrhage.calibrate.reader import Statistics
    from hemorrhage.compress.progress import Progress

SHUFFLED = "shuffled"
"""The setting that makes a method's control: the same work with the information in random places."""

Facts = dict[str, Any]
"""Entries for the manifest of a variant."""

Wording = str | Mapping[Any, str] | Callable[[Any], str]
"""How the value of a setting reads: a format, a text for each value, or a function of the value."""


class Settings(BaseModel):
    """Settings of one variant; the base of every method's.

    ``severity_field`` names the setting that places a variant on its ``axis``. All others are what the points of one
    damage curve have in common: ``identity`` and ``curve`` are derived from them. ``words`` says how settings read,
    ``said`` names those that are also said at their default; the rest is left out there. ``controls`` names values
    that make a variant a control. ``on_gpu``: the method has use for a GPU. ``theoretical``: what of the variant no
    program can use today.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    axis: ClassVar[str]
    severity_field: ClassVar[str] = ""
    words: ClassVar[Mapping[str, Wording]] = {}
    said: ClassVar[tuple[str, ...]] = ()
    controls: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    on_gpu: ClassVar[bool] = False
    theoretical: ClassVar[str] = ""

    # Where a variant stands, and what it is called.

    @property
    def severity(self) -> float:
        """Place of the variant on its axis; the value of ``severity_field`` unless the method says otherwise."""
        return float(getattr(self, self.severity_field))

    @property
    def severity_kind(self) -> str:
        """What the severity's setting says beside how much, such as the group of an n:m pattern."""
        return ""

    @property
    def common(self) -> dict[str, Any]:
        """The settings that the points of one damage curve have in common, those at their default left out."""
        return {
            name: getattr(self, name)
            for name, declared in type(self).model_fields.items()
            if name != self.severity_field
            and (declared.is_required() or name in self.said or getattr(self, name) != declared.default)
        }

    @property
    def identity(self) -> str:
        """What the points of one damage curve have in common, as JSON: equal on one curve, different on two."""
        kind = {"kind": self.severity_kind} if self.severity_kind else {}
        values = self.model_dump(mode="json", include=set(self.common))
        return json.dumps({**kind, **values}, sort_keys=True)

    @property
    def curve(self) -> str:
        """What the points of one damage curve have in common, for people."""
        return ", ".join(filter(None, [self.severity_kind, *map(self.wording, self.common)]))

    @property
    def label(self) -> str:
        """The variant for people: its severity, and what it has in common with its curve."""
        severity = [self.wording(self.severity_field)] if self.severity_field else []
        return ", ".join([*severity, *map(self.wording, self.common)])

    def wording(self, name: str) -> str:
        """Return how a setting reads."""
        value = getattr(self, name)
        wording = self.words.get(name)
        if isinstance(wording, Mapping):
            wording = wording.get(value)
        if callable(wording):
            return wording(value)
        plain = name.replace("_", " ")
        if isinstance(value, bool):
            return wording or (plain if value else f"no {plain}")
        return (wording or f"{plain} {{}}").format(number(value))

    # What the step needs to know; a method overrides what is not so.

    @property
    def statistics(self) -> tuple[str, ...]:
        """Statistics of the base model that the method reads: see ``hemorrhage.calibrate``."""
        return ()

    @property
    def propagates(self) -> bool:
        """Whether statistics are those of the model as far as it is altered already."""
        return False

    @property
    def second_order(self) -> bool:
        """Whether other weights make up for an error, by second moments or by learning."""
        return False

    @property
    def changes_weights(self) -> bool:
        """Whether a weight has to change."""
        return True

    @property
    def moved(self) -> str:
        """Whether weights are ``scaled`` or ``turned`` without changing what the model computes; see Fidelity."""
        return ""

    @property
    def mask_bits(self) -> float | None:
        """Bits of a weight that say whether it is there; None where nothing is masked."""
        return None

    @property
    def code_bits(self) -> float | None:
        """Bits of a stored weight, roughly; None where weights are stored as they were."""
        return None

    def check(self, config: dict[str, Any]) -> str | None:
        """Return why these settings can't be for a model with this config.json, or None."""
        return None

    def becomes(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the config.json that a variant on this one finds."""
        return config

    # Controls.

    @property
    def is_control(self) -> bool:
        """Whether the variant is a control: shuffled, or with one of the values of ``controls``."""
        controls = {SHUFFLED: (True,), **self.controls}
        return any(getattr(self, name) in controls.get(name, ()) for name in type(self).model_fields)

    @property
    def shuffled_control(self) -> Self | None:
        """The same settings with the information shuffled; None where there is nothing to shuffle, or it is."""
        if SHUFFLED not in type(self).model_fields or getattr(self, SHUFFLED):
            return None
        try:
            return type(self).model_validate({**self.model_dump(), SHUFFLED: True})
        except ValidationError:
            return None


def number(value: object) -> str:
    """Return a value as text: floats as short as they are exact, tuples with commas."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return ", ".join(map(number, value)) if isinstance(value, tuple) else str(value)


def percent(share: float) -> str:
    """Return a share in per cent."""
    return f"{number(round(100 * share, 10))} %"


@dataclass(frozen=True)
class Context:
    """What a method is given besides the model and its settings.

    ``statistics`` of the base model, None where the settings name none; ``seed`` of what is drawn at random;
    ``progress``: blocks that a job before has finished, None where nothing is kept; ``device``: where to compute what
    a GPU is faster at.
    """

    statistics: Statistics | None = None
    seed: int = 0
    progress: Progress | None = field(default=None, repr=False)
    device: str = "cpu"

    @property
    def calibration(self) -> Statistics:
        """The statistics, for a method that can't do without. Raises ValueError where there are none."""
        if self.statistics is None:
            raise ValueError("needs the statistics of a calibration")
        return self.statistics


@dataclass(frozen=True)
class Method:
    """A compression method."""

    info: MethodInfo
    settings: type[Settings]
    alter: Callable[[PreTrainedModel, Any, Context], Facts | None]
    """Alter the model in place. ``blocks`` among the entries for the manifest: the block of the model that was altered
    which each block was made from."""
    name: str = ""
    """The name of its file; hemorrhage.compress.catalogue says it."""
    family: str = ""
    """The name of its folder; hemorrhage.compress.catalogue says it."""

    @cached_property
    def examples(self) -> list[Settings]:
        """The settings of the examples."""
        return [self.settings.model_validate(example) for example in self.info.examples]


def described(method: Method, settings: Settings) -> dict[str, Any]:
    """Return what a manifest says of a variant before it is made."""
    return {
        "family": method.family,
        "method": method.name,
        "method_info": method.info.manifest(),
        "settings": settings.model_dump(mode="json"),
        "axis": settings.axis,
        "severity_field": settings.severity_field,
        "severity": settings.severity,
        "label": settings.label,
        "curve": settings.curve,
        "identity": settings.identity,
        "calibrated": bool(settings.statistics),
        "second_order": settings.second_order,
        "is_control": settings.is_control,
        "can_be_shuffled": settings.shuffled_control is not None,
    }
