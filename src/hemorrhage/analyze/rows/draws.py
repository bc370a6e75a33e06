"""How far damage moves with another calibration draw: not known of a method, though of a checkpoint.

A sweep with ``calibration_seed`` repeats variants with another calibration set. Where a study repeats LEAST times, the
spread of ln KL over the draws of one variant is measured, pooled over the variants that were repeated; it is known no
better than so few repetitions tell, so that what rests on it follows Student's t of their number. Corpora of one
repetition are no independent evidence. A method that was not repeated keeps the assumed spread.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hemorrhage.analyze.axes import Sweep, failure
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.rows.language import ROUNDING
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.stats.bootstrap import Floats

SPREAD = 0.1
"""Standard deviation over calibration draws, as a share of the damage, of a method that was not repeated.

Measured on the default model between two draws of 64 windows of 256 tokens, whose difference is larger by the square
root of two: GPTQ moves by 6 to 13 %, SparseGPT by 1 to 3 %, Wanda by 0 to 3 % (docs/thresholds.md). One value for all
methods, no less than the largest: two draws say little of any one."""

LEAST = 3
"""Repetitions that a measured spread rests on."""


@dataclass(frozen=True)
class Spread:
    """A standard deviation over calibration draws, as a share of damage, known with so many degrees of ``freedom``."""

    share: float
    freedom: float = math.inf

    def noise(self, shape: tuple[int, int], seed: int) -> Floats:
        """Draw by how much other calibration sets would move damages: float64 ``[resamples, points]``, shares.

        Each point moves on its own: between two draws GPTQ's 4 bits became worse where its 3 bits became better. How
        far they move is known alike, or unknown alike, for all of them.
        """
        if self.share == 0:
            return np.zeros(shape)
        generator = np.random.default_rng([seed, shape[1]])
        drawn = generator.normal(0, self.share, shape)
        if math.isinf(self.freedom):
            return drawn
        return drawn * np.sqrt(self.freedom / generator.chisquare(self.freedom, (shape[0], 1)))


NONE = Spread(0.0)


@dataclass(frozen=True)
class Draws:
    """What a study knows of calibration draws: the ``measured`` spread of the ``methods`` that it repeated, with the
    variants that repeat others; None where it repeats too few."""

    measured: Spread | None = None
    methods: frozenset[str] = frozenset()
    repeated: tuple[str, ...] = ()

    def of(self, variant: Variant) -> Spread:
        """Return the spread of a variant's damage; 0 where nothing was calibrated."""
        if not variant.manifest.get("calibrated"):
            return NONE
        return self.measured if self.measured and variant.method in self.methods else Spread(SPREAD)

    def factors(self, variant: Variant, resamples: int, seed: int) -> Floats:
        """Return how many times the damage of other draws is in each resample: on every data set the same.

        A factor, so that damage keeps its sign.
        """
        return np.exp(self.of(variant).noise((resamples, 1), seed_of(variant.name, seed))[:, 0])

    def of_curve(self, sweep: Sweep) -> Spread:
        """Return the spread of the points of a curve."""
        return max((self.of(variant) for variant in sweep.variants), key=lambda spread: spread.share, default=NONE)


def measure(inputs: Inputs, numbers: Numbers) -> Draws:
    """Measure the spread over the draws that a study repeats variants with."""
    groups: dict[tuple[str, ...], list[Variant]] = {}
    for variant in inputs.variants.values():
        if variant.name != BASE and variant.manifest.get("calibrated") and failure(inputs, variant) is None:
            settings = json.dumps(variant.settings, sort_keys=True)
            groups.setdefault((variant.method, settings, variant.on, str(variant.seed)), []).append(variant)
    repetitions = [members for members in groups.values() if any(each.is_redrawn for each in members)]
    known = [(members, _variance(members, numbers)) for members in repetitions]
    used = [(members, variance) for members, variance in known if variance is not None]
    freedom = sum(len(members) - 1 for members, _ in used)
    if freedom < LEAST:
        return Draws()
    pooled = sum((len(members) - 1) * variance for members, variance in used) / freedom
    return Draws(
        Spread(math.sqrt(pooled), freedom),
        frozenset(members[0].method for members, _ in used),
        tuple(each.name for members, _ in used for each in members if each.is_redrawn),
    )


def _variance(members: Sequence[Variant], numbers: Numbers) -> float | None:
    """Return the variance of ln KL over draws, mean over corpora; None where no corpus has all of them.

    What rounding leaves in doubt is no damage.
    """
    variances = []
    for corpus in numbers.datasets("kl_mean"):
        kls = [numbers.get(each.name, "kl_mean", corpus) for each in members]
        values = np.array([kl.value for kl in kls if kl is not None and math.isfinite(kl.value)])
        if 2 <= len(members) == len(values) and values.min() > ROUNDING:
            variances.append(float(np.log(values).var(ddof=1)))
    return float(np.mean(variances)) if variances else None


def seed_of(name: str, seed: int) -> int:
    """Return the seed of what a variant's or curve's other draws would be: on every corpus the same."""
    return zlib.crc32(f"{seed} {name} draws".encode())


def scatter(replicates: Floats, values: Floats, spread: Spread, seed: int) -> Floats:
    """Add to resampled damages ``[resamples, points]`` what another draw would change of ``values`` ``[points]``."""
    return replicates + spread.noise(replicates.shape, seed) * values
