"""Warnings about a user's files: text that is evaluated and was calibrated on."""

from __future__ import annotations

from pathlib import Path

from hemorrhage.study.params import Params

LEAST = 0.001
"""Share of n-grams that is worth a warning; a document that is in both files always is."""


def overlap_warnings(params: Params) -> list[str]:
    """Write a line for each file of evaluate.corpora that shares text with a file of calibrate.corpus.

    A file that is both is refused when params.yaml is read.
    """
    if not params.evaluate.files or not params.calibrate.files:
        return []
    # Numbers are computed for it, and the plan is read at every start.
    from hemorrhage.data.texts.overlap import NGRAM, overlap

    warnings = []
    for evaluated in params.evaluate.files:
        for calibrated in params.calibrate.files:
            shared = overlap(Path(evaluated.file), Path(calibrated.file))
            if shared.documents or shared.ngrams >= LEAST:
                warnings.append(
                    f"{evaluated.file}: {100 * shared.documents:.1f} % of its texts and {100 * shared.ngrams:.1f} % of "
                    f"its runs of {NGRAM} words are in {calibrated.file}, too, which calibrates: damage on them looks "
                    "smaller than it is"
                )
    return warnings
