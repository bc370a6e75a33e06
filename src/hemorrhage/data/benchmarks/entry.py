"""An entry of the catalogue of benchmarks: a task of lm-eval, and where its data lie."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Repository:
    """A configuration of the data set repository ``name``; ``renamed`` are (its column, lm-eval's column)."""

    name: str
    config: str
    renamed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A task of lm-eval, and where its data lie.

    ``definition`` is its file under lm-eval's tasks, ``metric`` the primary one as lm-eval's results name it
    (``metric,filter``), ``shots`` how many examples its prompts begin with. Of ``repositories`` the first that can be
    read is read. ``split`` is scored; ``shots_split`` is the one that the definition names for examples. ``columns``
    are those the definition reads. ``options`` is the number of choices, or the column that lists them
    (``outer.inner`` within a struct), or None where nothing is chosen; ``right`` is the column that names the right
    one: its index, or one of ``labels``, given here or in a column. ``member`` is the column that says to which task
    of a group a row belongs.
    """

    definition: str
    metric: str
    repositories: tuple[Repository, ...]
    split: str
    columns: tuple[str, ...]
    shots: int = 0
    shots_split: str | None = None
    options: str | int | None = None
    right: str = ""
    labels: str | tuple[str, ...] | None = None
    member: str | None = None
