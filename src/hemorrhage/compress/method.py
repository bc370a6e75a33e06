"""The contract of a compression method, which is one file: ``compress/methods/<family>/<method>.py``.

The file holds ``Settings``, a subclass of the one here, a function ``alter(model, settings, context)`` that alters a
model in place and may return an ``Alteration``, and ``METHOD``, which joins both with a ``MethodInfo``. Its name and
its folder are the method's name and family. A line in study/registry.py makes it known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypedDict

from pydantic import BaseModel, ConfigDict, ValidationError

from hemorrhage.compress.info import MethodInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hemorrhage.calibrate.reader import Statistics
    from hemorrhage.compress.checks.fidelity import EquivalentTransform
    from hemorrhage.compress.progress import Progress

SHUFFLED = "shuffled"
"""The setting that makes a method's control: the same work with the information in random places."""

OFF = {"sequential": "not sequential", SHUFFLED: "not shuffled", "symmetric": "asymmetric"}
"""Texts of settings that are off, where a method has none."""

ConfigJson = Mapping[str, Any]
"""A model's config.json, whose keys are transformers' and differ from one architecture to the next."""

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
"""What a manifest can hold."""

Wording = str | Mapping[Any, str] | Callable[[Any], str]
"""The text of a setting: a format, a text for each value, or a function of the value."""


class Settings(BaseModel):
    """Settings of one variant; the base of every method's.

    ``severity_field`` names the setting that places a variant on its ``axis``. All others are what the points of one
    damage curve have in common: ``identity`` and ``curve`` are derived from them. ``words`` says how settings read. A
    setting at its default is left out of a label, except for those in ``always_named``. ``controls`` names values that
    make a variant a control. ``in_names``: how a setting reads in the name of a variant, where not as it is. ``paths``
    names settings that are files of the user: their content counts, not where they lie. ``no_pattern``: text of a
    severity that has no ``severity_pattern``. ``on_gpu``: the method has use for a GPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    axis: ClassVar[str]
    severity_field: ClassVar[str] = ""
    words: ClassVar[Mapping[str, Wording]] = {}
    always_named: ClassVar[tuple[str, ...]] = ()
    controls: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    in_names: ClassVar[Mapping[str, Callable[[Any], str]]] = {}
    paths: ClassVar[tuple[str, ...]] = ()
    no_pattern: ClassVar[str] = ""
    on_gpu: ClassVar[bool] = False

    @classmethod
    def refusal(cls, path: Path) -> str | None:
        """Return why a file or folder that one of ``paths`` names can't be read, in one line, or None.

        A method whose files are no published models overrides it.
        """
        from hemorrhage.models.sources import published

        return published.refusal(path)

    # The variant's position on its curve, and its names.

    @property
    def severity(self) -> float:
        """Position of the variant on its axis: the value of ``severity_field`` unless a method overrides it."""
        return float(getattr(self, self.severity_field))

    @property
    def point(self) -> object:
        """What distinguishes a variant from the others of its damage curve: its severity, unless a file does."""
        return self.severity

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that the method imports by name, besides its own."""
        return ()

    @property
    def severity_pattern(self) -> str:
        """Structure that the severity's setting implies besides its amount, such as the group of an n:m pattern."""
        return ""

    @property
    def common(self) -> list[str]:
        """Names of the settings that the points of one damage curve share, without those at their default."""
        return [
            name
            for name, declared in type(self).model_fields.items()
            if name != self.severity_field
            and (declared.is_required() or name in self.always_named or getattr(self, name) != declared.default)
        ]

    @property
    def identity(self) -> str:
        """The settings that the points of one damage curve share, as JSON: equal on one curve, different on two."""
        pattern = {"kind": self.severity_pattern} if self.severity_pattern else {}
        values = self.model_dump(mode="json", include=set(self.common))
        return json.dumps({**pattern, **values}, sort_keys=True)

    @property
    def curve(self) -> str:
        """The settings that the points of one damage curve share, for people."""
        return ", ".join(filter(None, [self.severity_pattern, *map(self.wording, self.common)]))

    @property
    def curve_defaults(self) -> dict[str, str]:
        """Text of each setting that ``curve`` leaves out, as it is at its default, and of a missing pattern."""
        left_out = [name for name in type(self).model_fields if name not in (*self.common, self.severity_field)]
        pattern = {"kind": self.no_pattern} if self.no_pattern and not self.severity_pattern else {}
        return {**pattern, **{name: self.wording(name) for name in left_out}}

    @property
    def label(self) -> str:
        """The variant for people: its severity, and the settings of its curve."""
        severity = [self.wording(self.severity_field)] if self.severity_field else []
        return ", ".join([*severity, *map(self.wording, self.common)])

    def wording(self, name: str) -> str:
        """Return the text of a setting."""
        value = getattr(self, name)
        wording = self.words.get(name)
        plain = name.replace("_", " ")
        if isinstance(wording, Mapping):
            wording = wording.get(value)
            if wording is not None:
                return wording.format(number(value))
        if value is None:
            return f"no {plain}"
        if callable(wording):
            return wording(value)
        if value == ():
            return f"no {plain}"
        if isinstance(value, bool):
            # A text of its own is that of the setting that is on.
            return wording or plain if value else OFF.get(name) or f"no {wording or plain}"
        return (wording or f"{plain} {{}}").format(number(value))

    # Read by the compress step; a method overrides what differs.

    @property
    def statistics(self) -> tuple[str, ...]:
        """Statistics of the base model that the method reads: see ``hemorrhage.calibrate``."""
        return ()

    @property
    def propagates(self) -> bool:
        """True where statistics are those of the model as far as it is altered already."""
        return False

    @property
    def second_order(self) -> bool:
        """True where other weights compensate for an error, by input second moments or by learning."""
        return False

    @property
    def changes_weights(self) -> bool:
        """True where at least one weight has to change."""
        return True

    @property
    def equivalent_transform(self) -> EquivalentTransform:
        """Transform of weights that leaves the model's function unchanged, before they are rounded or cut."""
        return ""

    @property
    def theoretical(self) -> str:
        """A gain of the variant that no program can use today, or that is not measured here; empty without one."""
        return ""

    @property
    def mask_bits(self) -> float | None:
        """Bits that the mask takes for each weight; None where nothing is masked."""
        return None

    @property
    def code_bits(self) -> float | None:
        """Bits of a stored weight, roughly; None where weights are stored as they were."""
        return None

    @property
    def trained_windows(self) -> int:
        """Calibration windows that a training goes through, forwards and backwards; 0 where nothing is trained."""
        return 0

    @property
    def exact_tokens(self) -> int:
        """Tokens that a text has to exceed to be computed otherwise: the newest ones stay as they are."""
        return 0

    def check_text(self, tokens: int) -> str | None:  # noqa: ARG002 methods override it
        """Return the reason why texts of so many tokens would not show what these settings say, or None."""
        return None

    def check(self, config: ConfigJson) -> str | None:  # noqa: ARG002 methods override it
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        return None

    def check_model(self, model: PreTrainedModel) -> str | None:  # noqa: ARG002 methods override it
        """Raise RefusedError where these settings can't be for a model, though its config.json does not tell.

        Takes seconds and changes nothing. Returns a sentence where it depends on what a calibration finds, else None.
        """
        return None

    def altered_config(self, config: ConfigJson) -> ConfigJson:
        """Return the config.json that an alteration of this variant starts from."""
        return config

    # Controls.

    @property
    def is_control(self) -> bool:
        """True for a control: shuffled, or with one of the values of ``controls``."""
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
    """A method's arguments besides the model and its settings.

    ``statistics`` of the base model, None where the settings name none; ``seed`` of what is drawn at random;
    ``progress``: blocks that an earlier job has finished, None where nothing is resumed; ``device`` for what a GPU
    computes faster; ``base``: the folder of the base model.
    """

    statistics: Statistics | None = None
    seed: int = 0
    progress: Progress | None = field(default=None, repr=False)
    device: str = "cpu"
    base: Path | None = None

    @property
    def calibration(self) -> Statistics:
        """The statistics, for a method that can't do without. Raises ValueError where there are none."""
        if self.statistics is None:
            raise ValueError("needs the statistics of a calibration")
        return self.statistics


@dataclass(frozen=True)
class Alteration:
    """What a method reports of an alteration, for the variant's manifest.

    ``blocks``: for each block of the altered model the index of the block that it was made from, None where none was
    removed, added or reordered. ``experts``: mixture of the altered model -> the same of each of its experts, where
    some were removed. ``entries`` are written into the manifest as they are. ``model``: the model that takes the place
    of the one that was given, where it was not altered in place, and ``equivalent_transform`` what was found out about
    it.
    """

    blocks: list[int] | None = None
    experts: Mapping[str, list[int]] | None = None
    entries: Mapping[str, Json] = field(default_factory=dict)
    model: PreTrainedModel | None = None
    equivalent_transform: EquivalentTransform = ""


@dataclass(frozen=True)
class Method:
    """A compression method. ``name`` and ``family`` are those of its file and folder; the catalogue fills them in."""

    info: MethodInfo
    settings: type[Settings]
    alter: Callable[[PreTrainedModel, Any, Context], Alteration | None]
    """Alter the model in place."""
    name: str = ""
    family: str = ""

    @cached_property
    def examples(self) -> list[Settings]:
        """The settings of the examples."""
        return [self.settings.model_validate(example) for example in self.info.examples]


class Description(TypedDict):
    """What a manifest says of a variant before it is made."""

    family: str
    method: str
    method_info: Mapping[str, Json]
    settings: Mapping[str, Json]
    axis: str
    severity_field: str
    severity: float
    label: str
    curve: str
    curve_defaults: Mapping[str, str]
    identity: str
    calibrated: bool
    second_order: bool
    is_control: bool
    can_be_shuffled: bool


def describe(method: Method, settings: Settings) -> Description:
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
        "curve_defaults": settings.curve_defaults,
        "identity": settings.identity,
        "calibrated": bool(settings.statistics),
        "second_order": settings.second_order,
        "is_control": settings.is_control,
        "can_be_shuffled": settings.shuffled_control is not None,
    }
