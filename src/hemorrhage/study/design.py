"""The design of a study: params.yaml with its sweeps expanded into variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hemorrhage.study import params as config
from hemorrhage.study import screening


@dataclass(frozen=True)
class Design:
    """The outputs that a params.yaml asks for, without their addresses.

    ``added`` are points of its sweeps that a screening added, ``confirmed`` the variants whose damage is measured on
    fresh text: both are empty until the screening has been made.
    """

    params: config.Params
    added: Sequence[config.Point] = ()
    confirmed: Sequence[str] = ()

    @cached_property
    def variants(self) -> dict[str, config.Variant]:
        """Every point of every sweep, in the order of params.yaml."""
        return config.variants(self.params, self.added)

    @cached_property
    def named(self) -> dict[str, config.Variant]:
        """The variants that params.yaml names."""
        return config.variants(self.params) if self.added else self.variants

    @cached_property
    def screened(self) -> list[str]:
        """The variants that are screened."""
        return screening.screened(self.params, self.named)

    @cached_property
    def curves(self) -> list[screening.Curve]:
        """The curves that points can be added to."""
        return screening.curves(self.params, self.named) if self.screened else []

    @cached_property
    def possible(self) -> Design:
        """The design with every point that a screening could add, and everything confirmed that could be."""
        if not self.screened:
            return self
        added = [point for curve in self.curves for point in curve.free.values()]
        names = [name for curve in self.curves for name in curve.free]
        return Design(self.params, added, (*self.screened, *names))

    @cached_property
    def trainings(self) -> dict[str, config.Trained]:
        """The trainings that the run needs, in an order in which they can be made."""
        return config.trainings(self.params)

    @cached_property
    def strategies(self) -> dict[str, config.Strategy]:
        """The decoding strategies with complete settings."""
        return config.strategies(self.params)
