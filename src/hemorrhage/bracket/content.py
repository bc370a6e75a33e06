"""The content of a bracket: what the screening measured, what it adds, and what has to be confirmed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

FILE = "bracket.json"

INSIDE, OUTSIDE, UNDECIDED = "inside", "outside", "undecided"
"""What a few windows say of a variant, none of which is a verdict."""


@dataclass(frozen=True)
class Screened:
    """A variant on the windows of the screening.

    ``used``: share of the limit that its damage uses up, of the limit and the corpus where that is most, ``low`` and
    ``high`` its bounds. ``size``: share of the base's bytes. ``hindrance``: why no engine can use what it gains, or
    empty.
    """

    variant: str
    used: float
    low: float
    high: float
    size: float
    answer: str
    hindrance: str = ""

    @property
    def could_ship(self) -> bool:
        """Whether an engine can use what it gains, and it gains something."""
        return not self.hindrance and self.size < 1


@dataclass(frozen=True)
class CurveBracket:
    """Where the budget falls on a curve: the last point inside, the first outside, and what was added between them.

    Without a point ``inside`` the unaltered model is in its place. ``undecided`` are points between the two.
    ``reason``: why nothing was added, or empty.
    """

    curve: str
    axis: str
    inside: str | None
    outside: str | None
    undecided: tuple[str, ...]
    added: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Addition:
    """A variant that is added to a sweep, by its values of the settings that are lists there."""

    variant: str
    sweep: str
    values: Mapping[str, str | float | int]


@dataclass(frozen=True)
class Bracket:
    """The screening of a study on ``windows`` of each corpus, and what follows from it.

    ``confirmed`` names the variants that may ship, the smallest first; ``failed`` those that were not screened, with
    the reason.
    """

    windows: int
    allowance: int
    screened: tuple[Screened, ...]
    curves: tuple[CurveBracket, ...]
    added: tuple[Addition, ...]
    confirmed: tuple[str, ...]
    failed: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write the file of the bracket into ``folder``."""
        text = json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")


def read(folder: Path) -> Bracket:
    """Read the bracket of a folder."""
    return _READER.validate_json((folder / FILE).read_text(encoding="utf-8"))


_READER = TypeAdapter(Bracket)
