"""Claims over several studies: whether a verdict holds for other models: ``hemorrhage claims STUDY...``.

Each STUDY is a folder whose reports/ are there. The second stage of a claim's verdict is over models, each of which
counts once. Next to it, where quantized curves double their perplexity, in bits of the setting, and whether that moves
with the model's size, its family or the format; and swapped calibration sets, of studies of one model that differ by
theirs. A study of several models is as many studies, and has claims of its own, which take a family
(hemorrhage.analyze.family.claims).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from hemorrhage.analyze.family import results
from hemorrhage.analyze.family.claims import not_asked
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.study import PROVENANCE
from hemorrhage.analyze.verdicts.claims import CLAIMS
from hemorrhage.analyze.verdicts.evidence import AGREE, CONTRADICTED, NOT_MEASURED, SUPPORTED, decide
from hemorrhage.runtime.command import NOT_MEASURED as STATUS_NOT_MEASURED
from hemorrhage.runtime.command import YES, CommandError, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser

LEAST_MODELS = 3
"""Models that a verdict over models rests on."""

CONFIDENCE = 0.95

SIZE, FAMILY, FORMAT = "size", "family", "format"


@dataclass(frozen=True)
class Doubling:
    """Where a quantized curve doubles its perplexity: bits of the setting, the mean over corpora, with the widest
    interval of a corpus. Measured bits per parameter hold the embeddings, whose share is each model's own."""

    study: str
    model: str
    family: str
    parameters: float
    format: str
    bits: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """The standard error that the interval stands for."""
        return (self.high - self.low) / 2 / float(stats.norm.ppf((1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Study:
    """A study's folder, its base model, the verdict of each claim, and its doublings."""

    name: str
    model: str
    family: str
    parameters: float
    calibration: list[str]
    verdicts: dict[str, str]
    doublings: list[Doubling]
    rows: pd.DataFrame


@dataclass(frozen=True)
class OverModels:
    """A claim, its verdict by study, and what follows for models in general."""

    key: str
    claim: str
    by_study: dict[str, str]
    verdict: str


@dataclass(frozen=True)
class Movement:
    """Whether the doubling moves ``by`` size, family or format: Cochran's Q within what is held constant.

    ``range``: the largest difference of two levels in bits; ``slope``: bits per tenfold size, with its interval.
    """

    by: str
    verdict: str
    groups: int
    curves: int
    p: float = math.nan
    range: float = math.nan
    slope: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Swapped:
    """Two studies of one model that were calibrated on different corpora: mean over ``variants`` of ln of damage with
    the other set over damage with the own, both directions."""

    studies: tuple[str, str]
    verdict: str
    variants: int
    estimate: float
    low: float
    high: float


def studies_of(folder: Path) -> list[Study]:
    """Read the study of a folder, of several models a study each, called ``<folder>/<model>``. Raises CommandError."""
    models = _models(folder)
    return [read(folder, model) for model in models] if models else [read(folder)]


def _models(folder: Path) -> list[str]:
    """List the models of a study of several; none of one."""
    provenance = folder / "reports" / PROVENANCE
    return list(json.loads(provenance.read_text(encoding="utf-8")).get("models", ())) if provenance.is_file() else []


def read(folder: Path, of_model: str = "") -> Study:
    """Read the study of a folder. Raises CommandError where its reports are not there, or are of an earlier version."""
    reports = folder / "reports" / of_model
    files = [reports / name for name in ("claims.json", "thresholds.json", "hemorrhage.parquet")]
    for file in files:
        if not file.is_file():
            # A clone has the first two from git; DVC keeps the rows.
            instead = ", or dvc pull" if file is files[-1] else ""
            raise CommandError(f"{file} does not exist; run the study there{instead}", STATUS_NOT_MEASURED)
    claims, thresholds = (json.loads(file.read_text(encoding="utf-8")) for file in files[:2])
    rows = pd.read_parquet(files[2])
    if "model" not in claims:
        raise CommandError(f"{reports / 'claims.json'} names no base model; analyze the study again")
    model = claims["model"]
    name, family, parameters = str(model["name"]), str(model["family"]), float(model["parameters"] or math.nan)
    study = f"{folder.name}/{of_model}" if of_model else folder.name
    doublings = [Doubling(study, name, family, parameters, *each) for each in _doublings(thresholds["curves"])]
    verdicts = {claim["key"]: claim["verdict"] for claim in claims["claims"]}
    return Study(study, name, family, parameters, list(model["calibration"]), verdicts, doublings, rows)


def _doublings(curves: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, float, float, float]]:
    """Yield format, bits and their interval of each curve of quantized weights that doubles on every corpus."""
    by_curve: dict[str, list[object]] = {}
    for curve in curves:
        if curve["axis"] == "bits" and curve["on"] == "base" and curve["family"] == "weight_quantization":
            named = " ".join(str(curve[key]) for key in ("method", "curve") if curve[key])
            doubled = curve["two_fold"]
            by_curve.setdefault(named, []).append(doubled.get("label_bits") if isinstance(doubled, dict) else None)
    for named, thresholds in by_curve.items():
        known = [each for each in thresholds if isinstance(each, dict) and _is_bounded(each)]
        if len(known) == len(thresholds):
            ends = [[float(each[key]) for each in known] for key in ("estimate", "low", "high")]
            yield named, float(np.mean(ends[0])), min(ends[1]), max(ends[2])


def _is_bounded(threshold: Mapping[str, object]) -> bool:
    return all(threshold.get(key) is not None for key in ("estimate", "low", "high"))


def over_models(studies: Sequence[Study]) -> list[OverModels]:
    """Judge every claim over the models of some studies."""
    titles = {claim.key: claim.claim for claim in CLAIMS}
    return [
        OverModels(key, title, by_study, _general(studies, by_study))
        for key, title in titles.items()
        if (by_study := {study.name: study.verdicts.get(key, NOT_MEASURED) for study in studies})
    ]


def _general(studies: Sequence[Study], by_study: Mapping[str, str]) -> str:
    """Say what follows for models; a model whose studies disagree decides nothing."""
    by_model: dict[str, set[str]] = {}
    for study in studies:
        if by_study[study.name] in (SUPPORTED, CONTRADICTED):
            by_model.setdefault(study.model, set()).add(by_study[study.name])
    decided = {model: next(iter(verdicts)) for model, verdicts in by_model.items() if len(verdicts) == 1}
    sides = {side: [model for model, each in decided.items() if each == side] for side in (SUPPORTED, CONTRADICTED)}
    if len(decided) < LEAST_MODELS:
        return f"not decided: {len(decided)} models decide, {LEAST_MODELS} are needed"
    for side, models in sides.items():
        if len(models) >= AGREE * len(decided):
            return f"{side} on {len(models)} of {len(decided)} models"
    return "depends on the model: " + "; ".join(f"{side} on {', '.join(models)}" for side, models in sides.items())


# Claims that take a family of models.


@dataclass(frozen=True)
class OfFamily:
    """A claim that takes a family of models, and what a study says; of one that none asked about ``study`` is empty."""

    key: str
    claim: str
    study: str
    verdict: str
    measured: str


def of_families(folders: Sequence[Path]) -> list[OfFamily]:
    """List what the studies of several models among ``folders`` say; empty where there is none."""
    families = {folder.name: results.read(folder / "reports") for folder in folders if _models(folder)}
    asked = [(name, each) for name, concluded in families.items() for each in concluded.claims]
    left = [("", each) for each in not_asked([each.key for _, each in asked])] if families else []
    return [
        OfFamily(each.key, each.claim, name, each.finding.verdict, each.finding.measured)
        for name, each in [*asked, *left]
    ]


# Where the doubling lies.


def movements(doublings: Sequence[Doubling]) -> list[Movement]:
    """Test whether the doubling moves with size and family, by format, and with the format, by model."""
    return [
        _by_size(_grouped(doublings, FORMAT, SIZE)),
        _movement(FAMILY, _grouped(doublings, FORMAT, FAMILY)),
        _movement(FORMAT, _grouped(doublings, "model", FORMAT)),
    ]


Grouped = dict[str, dict[str, list[Doubling]]]
"""What is held constant -> the level that is compared -> doublings."""


def _grouped(doublings: Iterable[Doubling], constant: str, level: str) -> Grouped:
    grouped: Grouped = {}
    for doubling in doublings:
        of_level = f"{doubling.parameters:.0f}" if level == SIZE else str(getattr(doubling, level))
        grouped.setdefault(str(getattr(doubling, constant)), {}).setdefault(of_level, []).append(doubling)
    return {name: levels for name, levels in grouped.items() if len(levels) > 1}


def _movement(by: str, grouped: Grouped) -> Movement:
    if not grouped:
        return Movement(by, f"not measured: no two levels of {by} with all else the same", 0, 0)
    q, freedom, widest, curves = 0.0, 0, 0.0, 0
    for levels in grouped.values():
        means = [_pool(members) for members in levels.values()]
        values, weights = (np.array(each) for each in zip(*means, strict=True))
        middle = float((values * weights).sum() / weights.sum())
        q += float((weights * (values - middle) ** 2).sum())
        freedom += len(values) - 1
        widest = max(widest, float(np.ptp(values)))
        curves += sum(map(len, levels.values()))
    p = float(stats.chi2.sf(q, freedom))
    moves = p < 1 - CONFIDENCE
    shown = f"moves with {by}" if moves else f"not shown to move with {by}"
    return Movement(by, f"{shown}: levels lie up to {widest:.2g} bits apart", len(grouped), curves, p, widest)


def _pool(members: Sequence[Doubling]) -> tuple[float, float]:
    """Return the mean of one level's doublings by inverse variance, and its weight."""
    weights = np.array([1 / max(member.error, 1e-3) ** 2 for member in members])
    return float((weights * [member.bits for member in members]).sum() / weights.sum()), float(weights.sum())


def _by_size(grouped: Grouped) -> Movement:
    """Add the slope over sizes, with the format's own level taken out."""
    movement = _movement(SIZE, grouped)
    x, y, weights, names = [], [], [], []
    for name, levels in grouped.items():
        for level, members in levels.items():
            bits, weight = _pool(members)
            x.append(math.log10(float(level)))
            y.append(bits)
            weights.append(weight)
            names.append(name)
    sizes = len(set(x))
    if sizes < LEAST_MODELS:
        return movement
    design = np.array([[value, *(name == other for other in grouped)] for value, name in zip(x, names, strict=True)])
    root = np.sqrt(weights)
    solved, *_ = np.linalg.lstsq(design * root[:, None], np.array(y) * root, rcond=None)
    left = (np.array(y) - design @ solved) * root
    freedom = len(y) - design.shape[1]
    # Sizes of real models scatter about any line: never less than the thresholds' own errors.
    scale = max(float(left @ left) / freedom, 1.0) if freedom > 0 else 1.0
    error = math.sqrt(scale * float(np.linalg.pinv((design * root[:, None]).T @ (design * root[:, None]))[0, 0]))
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, max(freedom, 1)))
    slope = float(solved[0])
    sign = "rises" if slope - half > 0 else "falls" if slope + half < 0 else "no slope was shown"
    text = (
        f"{movement.verdict}; {sign}: {slope:+.2g} bits per tenfold size ({slope - half:+.2g} to {slope + half:+.2g})"
    )
    return Movement(
        SIZE, text, movement.groups, movement.curves, movement.p, movement.range, slope, slope - half, slope + half
    )


# Swapped calibration sets.


def swapped(studies: Sequence[Study]) -> list[Swapped]:
    """Compare every two studies of one model that were calibrated on one corpus each, and not on the same."""
    pairs = [
        (first, second)
        for place, first in enumerate(studies)
        for second in studies[place + 1 :]
        if first.model == second.model
        and len(first.calibration) == len(second.calibration) == 1
        and first.calibration != second.calibration
    ]
    return [each for first, second in pairs if (each := _swap(first, second)) is not None]


def _swap(first: Study, second: Study) -> Swapped | None:
    numbers = (Numbers(first.rows), Numbers(second.rows))
    own = (first.calibration[0], second.calibration[0])
    values = []
    for variant in dict.fromkeys(first.rows["variant"]):
        damages = [
            numbers[side].get(variant, "ln_perplexity_ratio", own[corpus]) for side in (0, 1) for corpus in (0, 1)
        ]
        known = [damage.value for damage in damages if damage is not None and damage.low > 0]
        # What reads no calibration text is the same in both studies.
        if len(known) == len(damages) and known[:2] != known[2:]:
            a_on_a, a_on_b, b_on_a, b_on_b = map(math.log, known)
            values.append((a_on_b + b_on_a - a_on_a - b_on_b) / 2)
    if not values:
        return None
    low, high = bootstrap.t_interval(np.array(values), CONFIDENCE)
    verdict = decide(low, high, sum(value > 0 for value in values), len(values))
    return Swapped((first.name, second.name), verdict, len(values), float(np.mean(values)), low, high)


def as_text(studies: Sequence[Study]) -> Iterator[str]:
    """Write the tables."""
    yield f"{'study':20s} {'model':28s} {'family':12s} {'parameters':>12s}  calibrated on"
    for study in studies:
        size = f"{study.parameters:.3g}"
        yield f"{study.name:20s} {study.model:28s} {study.family:12s} {size:>12s}  {', '.join(study.calibration)}"
    for claim in over_models(studies):
        yield ""
        yield f"{claim.claim} {claim.verdict}"
        yield "  " + "; ".join(f"{name}: {verdict}" for name, verdict in claim.by_study.items())
    doublings = [doubling for study in studies for doubling in study.doublings]
    yield ""
    yield "Where perplexity doubles, in bits of the setting:"
    for each in doublings:
        yield f"  {each.study:20s} {each.format:36s} {each.bits:.2f} ({each.low:.2f} to {each.high:.2f})"
    for movement in movements(doublings):
        yield f"  {movement.verdict}"
    for swap in swapped(studies):
        interval = f"{swap.estimate:+.2g} ({swap.low:+.2g} to {swap.high:+.2g}), {swap.variants} variants"
        yield f"Swapped calibration sets, {' and '.join(swap.studies)}: {swap.verdict}; ln of damage {interval}"


def family_text(families: Sequence[OfFamily]) -> Iterator[str]:
    """Write what studies of several models say of the claims that take them."""
    for each in families:
        yield ""
        yield f"{each.claim} {each.verdict}"
        yield f"  {f'{each.study}: ' if each.study else ''}{each.measured}"


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "claims",
        "Judge the claims over the models of several studies, ask whether the bits at which perplexity doubles move\n"
        "with size, family or format, and compare studies of one model with swapped calibration sets.",
        ["hemorrhage claims ../smollm-135m ../smollm-360m ../qwen-0.5b", "hemorrhage claims . ../other --json"],
        {STATUS_NOT_MEASURED: "a folder has no reports"},
    )
    made.add_argument("studies", nargs="+", type=Path, metavar="STUDY", help="a study's folder, with its reports/")
    made.add_argument("--json", action="store_true", help="the tables as JSON")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    arguments = parser().parse_args(argv)
    folders = [folder.resolve() for folder in arguments.studies]
    studies = [study for folder in folders for study in studies_of(folder)]
    if len({study.name for study in studies}) < len(studies):
        raise CommandError("STUDY: two folders have the same name; they could not be told by it")
    families = of_families(folders)
    if not arguments.json:
        print("\n".join([*as_text(studies), *family_text(families)]))
        return YES
    doublings = [doubling for study in studies for doubling in study.doublings]
    content = {
        "claims": [asdict(claim) for claim in over_models(studies)],
        "families": [asdict(each) for each in families],
        "doublings": [asdict(doubling) for doubling in doublings],
        "movements": [asdict(movement) for movement in movements(doublings)],
        "swapped": [asdict(swap) for swap in swapped(studies)],
    }
    print(json_text(content))
    return YES
