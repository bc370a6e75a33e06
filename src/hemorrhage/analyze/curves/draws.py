"""How far damage moves with another calibration draw, as part of what is not known of a curve's points."""

from __future__ import annotations

import numpy as np

from hemorrhage.analyze.axes import Sweep
from hemorrhage.analyze.stats.bootstrap import Floats

SPREAD = 0.1
"""Standard deviation over calibration draws, as a share of the damage, of a variant that was calibrated once.

Measured on the default model between two draws of 64 windows of 256 tokens, whose difference is larger by the square
root of two: GPTQ moves by 6 to 13 %, SparseGPT by 1 to 3 %, Wanda by 0 to 3 % (docs/thresholds.md). One value for all
methods, no less than the largest: two draws say little of any one."""


def spread(sweep: Sweep) -> float:
    """Return the standard deviation over calibration draws, as a share of damage; 0 where nothing was calibrated."""
    return SPREAD if any(variant.manifest.get("calibrated") for variant in sweep.variants) else 0.0


def scatter(replicates: Floats, values: Floats, share: float, seed: int) -> Floats:
    """Add to resampled damages ``[resamples, points]`` what another draw would change of ``values`` ``[points]``.

    Points of a curve move on their own: between two draws GPTQ's 4 bits became worse where its 3 bits became better.
    """
    if share == 0:
        return replicates
    drawn = np.random.default_rng([seed, len(values)]).normal(0, share, replicates.shape)
    return replicates + drawn * values
