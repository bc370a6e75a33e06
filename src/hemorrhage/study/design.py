"""The design of a study: params.yaml with its sweeps expanded into variants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hemorrhage.study import params as config


@dataclass(frozen=True)
class Design:
    """The outputs that a params.yaml asks for, without their addresses."""

    params: config.Params

    @cached_property
    def variants(self) -> dict[str, config.Variant]:
        """Every point of every sweep, in the order of params.yaml."""
        return config.variants(self.params)

    @cached_property
    def strategies(self) -> dict[str, config.Strategy]:
        """The decoding strategies with complete settings."""
        return config.strategies(self.params)
