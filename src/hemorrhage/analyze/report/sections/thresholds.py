"""Thresholds of every curve, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hemorrhage.analyze.axes import FEWER_IS_WORSE, Sweep
from hemorrhage.analyze.curves.definitions import NAMES
from hemorrhage.analyze.curves.entries import NO_CLIFF, CurveEntry, LabelBits, curves_of
from hemorrhage.analyze.curves.thresholds import DESCRIBED
from hemorrhage.analyze.study import Study


@dataclass(frozen=True)
class Cell:
    """A threshold: where it is, and the reason or the points around it."""

    text: str
    note: str


@dataclass(frozen=True)
class Row:
    """The thresholds of a curve, its best shape, and the points to run next.

    ``curve``: what its points have in common, where the name does not say it.
    """

    name: str
    curve: str
    points: int
    cells: list[Cell]
    shape: str
    missing: str
    defects: str
    next_values: str
    next_reason: str


@dataclass(frozen=True)
class Thresholds:
    """The table: ``names`` of the definitions, and corpus -> rows."""

    names: list[str]
    rows: dict[str, list[Row]]


def section(study: Study) -> Thresholds:
    """Return the section of a study."""
    return Thresholds(
        names=list(NAMES.values()),
        rows={corpus: [_row(entry) for entry in curves_of(study.thresholds, corpus)] for corpus in study.corpora},
    )


def _row(entry: CurveEntry) -> Row:
    fit, proposed = entry.fits.get("ln_perplexity_ratio"), entry.next
    return Row(
        name=entry.name,
        curve="" if entry.name.endswith(entry.curve) else entry.curve,
        points=entry.points,
        cells=[Cell(location(entry, name), explanation(entry, name)) for name in NAMES],
        shape=DESCRIBED[fit.shape] if fit else "",
        missing=", ".join(entry.missing),
        defects="; ".join(f"{', '.join(defect.cells)}: {defect.rule}" for defect in entry.defects),
        next_values=", ".join(f"{value:g}" for value in proposed.values) if proposed else "",
        next_reason=proposed.reason if proposed else "",
    )


def location(entry: CurveEntry, definition: str) -> str:
    """Write where a threshold of a curve is, with its interval."""
    threshold = entry.thresholds[definition]
    if not threshold.is_located:
        return threshold.answer
    low, high = ("" if end is None else _number(entry, end) for end in (threshold.low, threshold.high))
    limits = f"{low} to {high}" if low and high else f"beyond {low or high}" if low or high else "anywhere"
    return f"{_number(entry, threshold.estimate)} {_unit(entry)} ({limits})"


def explanation(entry: CurveEntry, definition: str) -> str:
    """Write between which measured points a threshold is, or why there is none."""
    threshold = entry.thresholds[definition]
    if not threshold.is_located:
        return threshold.reason
    parts = []
    if threshold.label_bits is not None:
        parts.append(f"at a label of {_limits(threshold.label_bits)} bits")
    if threshold.between is not None:
        low, high = (_number(entry, value) for value in threshold.between)
        parts.append(f"between the measured {low} and {high} {_unit(entry)}")
    return "; ".join(parts)


def _limits(label: LabelBits) -> str:
    """Write the bits of the setting with their interval; its ends are whole where widths are."""
    low, high = ("" if end is None else f"{end:.3g}" for end in (label.low, label.high))
    limits = f"{low} to {high}" if low and high else f"beyond {low or high}" if low or high else "anywhere"
    return f"{label.estimate:.1f} ({limits})"


def _unit(entry: CurveEntry) -> str:
    return "bits" if entry.axis in FEWER_IS_WORSE else "steps" if entry.axis == "steps" else "%"


def _number(entry: CurveEntry, value: float) -> str:
    return f"{value:.2f}" if entry.axis in FEWER_IS_WORSE else f"{100 * value:.1f}"


def doubling_sentence(entries: Sequence[CurveEntry], sweeps: Sequence[Sweep], corpus: str) -> str:
    """Say where the perplexity of each curve doubles."""
    names = [sweep.name for sweep in sweeps if len(sweep.variants) > 1]
    chosen = [entry for entry in entries if entry.name in names and entry.corpus == corpus]
    doubled = [(entry, entry.thresholds["two_fold"]) for entry in chosen]
    reached = [(entry, threshold.estimate) for entry, threshold in doubled if threshold.is_located]
    never = [entry.name for entry, threshold in doubled if threshold.answer == NO_CLIFF]
    sentences = []
    if reached:
        reached.sort(key=lambda pair: abs(pair[1] - pair[0].base), reverse=True)
        listed = (f"{entry.name} {_number(entry, estimate)}\u00a0{_unit(entry)}" for entry, estimate in reached)
        sentences.append(f"perplexity doubles at {', '.join(listed)}.")
    if never:
        start = "It" if reached else "perplexity"
        sentences.append(f"{start} never doubles for {', '.join(never)} in the range measured.")
    return f"On {corpus}, {' '.join(sentences)}" if sentences else ""
