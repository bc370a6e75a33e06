"""What a screening reads and may add: the variants that could ship, and the points between those of a sweep."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hemorrhage.compress.info import Spacing
from hemorrhage.compress.method import Settings
from hemorrhage.runtime.address import Json
from hemorrhage.study import params as config

SIZE_AXES = ("bits", "sparsity", "removed")
"""Axes along which a variant becomes smaller."""

SCREENED = ("kl", "perplexity")
"""Limits of the budget that a few windows of text say something about."""


@dataclass(frozen=True)
class Curve:
    """The points of a sweep that differ in one number only: ``listed`` in params.yaml, and ``free`` to be added.

    ``listed``: variant -> its severity, in the order of params.yaml; ``free``: the same of what would be added, with
    its point.
    """

    name: str
    axis: str
    listed: Mapping[str, float]
    free: Mapping[str, config.Point] = field(default_factory=dict)
    severities: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> Json:
        """Return the curve as the bracket step gets it."""
        free: Json = {
            name: {"sweep": point.sweep, "values": dict(point.values), "severity": self.severities[name]}
            for name, point in self.free.items()
        }
        return {"name": self.name, "axis": self.axis, "listed": dict(self.listed), "free": free}


def could_ship(variant: config.Variant) -> bool:
    """Tell whether a variant may be picked: no control or repetition, and its gain is on disk and for engines to use.

    Zeros under a mask are stored, and a rounded cache or activation makes no file smaller.
    """
    settings = variant.settings
    gains = settings.axis in SIZE_AXES and settings.mask_bits is None and not settings.theoretical
    return gains and not settings.is_control and variant.calibration_seed is None


def screened(params: config.Params, variants: Mapping[str, config.Variant]) -> list[str]:
    """Name the variants of params.yaml that are screened: none where nothing is."""
    return [name for name, variant in variants.items() if could_ship(variant)] if params.screen.windows else []


def curves(params: config.Params, variants: Mapping[str, config.Variant]) -> list[Curve]:
    """List the curves along which a screened variant becomes smaller, with the points that could be added to each."""
    grouped: dict[tuple[str, str], list[config.Variant]] = {}
    for name in screened(params, variants):
        variant = variants[name]
        if variant.on is None:
            grouped.setdefault((variant.sweep, variant.settings.identity), []).append(variant)
    return [_curve(params, members) for members in grouped.values()]


def _curve(params: config.Params, members: list[config.Variant]) -> Curve:
    first = members[0]
    several = any(len(value) > 1 for value in _others(params.compress[first.sweep], first.settings).values())
    free = {variant.name: (point, variant.settings.severity) for point, variant in _free(params, members)}
    return Curve(
        name=f"{first.sweep} {first.settings.curve}" if several else first.sweep,
        axis=first.settings.axis,
        listed={variant.name: variant.settings.severity for variant in members},
        free={name: point for name, (point, _) in free.items()},
        severities={name: severity for name, (_, severity) in free.items()},
    )


def _others(content: config.FreeSettings, settings: Settings) -> dict[str, list[str | float | int]]:
    """Return the lists of a sweep other than that of its severity."""
    return {key: value for key, value in content.items() if isinstance(value, list) and key != settings.severity_field}


def _free(params: config.Params, members: list[config.Variant]) -> Iterator[tuple[config.Point, config.Variant]]:
    """Yield the points that a curve could get, each as the variant that it would be."""
    first, key = members[0], members[0].settings.severity_field
    content, spacing = params.compress[first.sweep], first.info.values
    if spacing is None or not isinstance(content.get(key), list):
        return
    listed = [value for value in content[key] if isinstance(value, int | float)]
    others = _others(content, first.settings)
    for value in _worth(params, first, spacing, listed):
        for combination in itertools.product(*others.values()):
            values = {**dict(zip(others, combination, strict=True)), key: value}
            point = config.Point(first.sweep, {name: values[name] for name in content if name in values})
            variant = _variant(params, point)
            if variant is not None and variant.settings.identity == first.settings.identity:
                yield point, variant


def _worth(
    params: config.Params, first: config.Variant, spacing: Spacing, listed: list[float | int]
) -> list[float | int]:
    """List the values of a severity that params.yaml lacks and that would make another model."""
    # Where blocks are spared, what the others can lose depends on the model.
    most = max(listed, default=spacing.low) if first.info.spares_blocks else spacing.high
    values = [value for value in spacing.values() if value not in listed and value <= most]
    blocks = (config.architecture(params) or {}).get("num_hidden_layers")
    if not first.info.by_blocks or not blocks:
        return values
    counts = {0, *(int(value * blocks + 0.5) for value in listed)}
    different = []
    for value in values:
        count = int(value * blocks + 0.5)
        if count not in counts:
            counts.add(count)
            different.append(value)
    return different


def _variant(params: config.Params, point: config.Point) -> config.Variant | None:
    """Return the variant that a point would be; None where its settings or the model rule it out."""
    content = {**params.compress[point.sweep], **{key: [value] for key, value in point.values.items()}}
    alone = params.model_copy(update={"compress": {point.sweep: content}})
    try:
        (variant,) = config.variants(alone).values()
    except config.ConfigError:
        return None
    shape = config.architecture(params)
    refused = variant.settings.check_text(params.evaluate.window) or (shape and variant.settings.check(shape))
    return None if refused else variant
