"""Statements of printed tables, computed from the tables themselves, and what the claims' rules say of them.

- POST_TRAINED: the decoding table of arXiv 2503.23924 as the authors' repository has it
  (whucs21Mzy/Model-Hemorrhage at af85673): MBPP, GSM8K, Wikinews of nine post-trained models.
- PAIRS: MBPP pass@1 of arXiv 2402.06925 (tables 1 and 26, as transcribed in karrtikiyer/pless-for-coding): three base
  models, each with its aligned one. Hyper-parameters are tuned per strategy there.
- UNSTRUCTURED, STRUCTURED, PATTERNS, CALIBRATED, BITS: WikiText-2 perplexity of Llama-2-7B by the authors' repository
  (tables 1, 2 and 4). Windows differ between rows, so each row has its own dense perplexity: 5.12 with 4,096 tokens,
  5.47 with 2,048, and 12.62 with 128, which is LLaMA-7B's, where the table has none.
- COMBINED: the same of SparseGPT and GPTQ together, by the repository's later state (Model-Phase-Transitions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hemorrhage.analyze.verdicts import causes, limits
from hemorrhage.analyze.verdicts.causes import OTHER_SET, Arm, Cause
from hemorrhage.analyze.verdicts.evidence import CONTRADICTED, NOT_DECIDED, SUPPORTED, Finding, decide
from hemorrhage.analyze.verdicts.limits import Curves, Point

POST_TRAINED_STRATEGIES = (
    "greedy", "beam", "diverse beam", "contrastive search", "FSD", "FSD-d", "temperature", "top-p", "top-k", "eta",
    "mirostat", "typical",
)  # fmt: skip

_TABLE = """
Yi-1.5-9B-Chat | 48.6/64.2/24.4 | 50.8/65.5/23.5 | 51.0/67.6/24.4 | 52.0/66.4/24.4 | 49.8/66.6/25.1 | 49.3/68.8/24.3 | 50.8/67.5/24.6 | 49.2/66.9/24.5 | 50.0/64.9/24.6 | 49.8/65.2/24.5 | 50.4/66.9/24.2 | 51.6/67.4/24.4
Gemma-2-9b-IT | 54.8/77.9/25.9 | 56.8/79.2/26.0 | 56.2/78.6/25.8 | 57.4/79.3/25.9 | 57.6/78.9/25.8 | 56.6/79.2/26.0 | 56.0/78.9/26.1 | 57.8/78.6/26.0 | 56.2/78.5/26.1 | 57.0/78.7/25.7 | 56.6/78.8/26.1 | 56.0/78.6/26.0
GLM-4-9b-chat | 53.2/69.4/31.1 | 57.2/71.2/30.4 | 55.4/72.5/30.7 | 55.8/71.5/30.7 | 56.4/70.5/31.3 | 56.4/72.3/30.9 | 60.0/68.8/30.9 | 54.6/70.8/30.6 | 57.0/69.8/31.0 | 53.4/71.7/30.5 | 55.0/70.4/30.5 | 54.2/72.1/30.8
Qwen2.5-7B-Inst | 61.8/77.3/30.3 | 66.0/78.9/30.5 | 63.4/79.0/30.7 | 65.0/78.5/30.7 | 63.8/79.3/30.7 | 65.0/78.7/30.6 | 66.4/77.9/30.6 | 64.4/77.9/30.6 | 62.6/77.7/30.9 | 62.6/78.6/30.6 | 63.4/78.4/30.3 | 64.0/78.9/30.5
R1-Llama-8B | 6.8/16.2/19.7 | 6.6/16.9/19.7 | 7.8/17.1/19.8 | 7.4/16.5/19.5 | 7.2/17.4/20.1 | 8.2/17.8/19.7 | 8.0/18.0/19.8 | 7.6/16.0/19.7 | 7.6/16.8/19.7 | 7.0/15.2/19.3 | 8.0/16.5/19.8 | 7.2/15.6/20.0
R1-Qwen-7B | 4.2/46.2/18.0 | 3.2/54.4/18.7 | 2.2/54.3/18.7 | 3.0/54.3/19.2 | 3.6/53.5/19.1 | 3.4/56.1/18.0 | 2.6/55.0/18.8 | 2.8/53.9/18.5 | 2.0/52.5/18.2 | 3.4/53.2/18.8 | 3.6/53.9/18.3 | 2.8/56.1/18.7
R1-Qwen-14B | 3.4/48.8/25.2 | 3.6/57.2/24.7 | 3.4/56.0/24.8 | 4.4/56.7/25.2 | 3.6/55.7/24.7 | 3.6/58.8/25.3 | 3.0/56.3/24.8 | 3.6/55.3/25.3 | 3.2/55.1/25.4 | 3.2/57.6/25.0 | 2.8/56.2/25.5 | 4.2/57.9/25.6
Llama-3.1-8B-Inst | 53.8/72.9/15.8 | 56.0/73.5/16.2 | 55.2/74.7/16.2 | 56.2/73.8/16.6 | 56.4/74.4/15.7 | 57.2/74.8/16.0 | 56.6/77.2/15.7 | 58.8/73.5/15.5 | 53.8/73.7/16.3 | 54.2/74.6/15.2 | 55.2/74.1/16.4 | 55.4/72.9/16.0
Marco-o1-7B | 14.2/34.3/34.1 | 14.8/43.3/34.1 | 14.6/42.6/34.0 | 16.2/41.3/34.0 | 15.8/42.5/34.1 | 14.0/43.2/34.1 | 14.0/46.1/34.1 | 14.8/42.0/34.0 | 14.4/42.0/33.9 | 13.8/43.1/34.0 | 13.4/41.6/34.2 | 15.4/43.5/33.8
"""  # noqa: E501

POST_TRAINED: dict[str, npt.NDArray[np.float64]] = {
    line.split("|")[0].strip(): np.array([[float(score) for score in cell.split("/")] for cell in line.split("|")[1:]])
    for line in _TABLE.strip().splitlines()
}
"""Model -> [strategies, 3]: MBPP, GSM8K, Wikinews."""

PAIRS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "Llama-2-7B": (
        (17.8, 19.4, 18.4, 17.4, 19.2, 21.2, 18.2, 18.4, 17.2, 14.8, 10.2, 9.4, 7.8, 12.0),
        (17.2, 21.6, 21.2, 17.4, 17.8, 17.8, 17.4, 18.0, 20.0, 17.6, 16.0, 17.0, 16.0, 18.0),
    ),
    "CodeLlama-7B": (
        (35.4, 34.2, 35.0, 36.0, 37.0, 39.6, 35.0, 32.8, 25.4, 23.6, 21.2, 31.8),
        (36.8, 40.8, 41.6, 37.0, 37.2, 36.6, 39.0, 37.6, 35.6, 35.4, 34.4, 38.2),
    ),
    "Qwen-7B": (
        (33.0, 34.4, 33.2, 28.4, 33.0, 33.6, 33.8, 27.4, 19.8, 25.8, 18.4, 27.0),
        (30.4, 30.8, 33.6, 25.8, 30.8, 29.8, 30.0, 28.8, 26.8, 24.2, 25.0, 27.2),
    ),
}
"""Family -> MBPP pass@1 over strategies of the base and of the aligned model."""

LIMIT = 0.15
"""The spread over strategies above which a model is said not to be aligned (arXiv 2503.23924)."""


def spread(scores: npt.ArrayLike) -> float:
    """Compute (max - min) / max."""
    values = np.asarray(scores, dtype=np.float64)
    return float((values.max() - values.min()) / values.max())


def above_the_limit() -> list[str]:
    """Name the post-trained models whose spread on MBPP or GSM8K is above LIMIT."""
    return [name for name, table in POST_TRAINED.items() if max(spread(table[:, 0]), spread(table[:, 1])) > LIMIT]


def best(column: int) -> list[list[str]]:
    """Name, for each post-trained model, the strategies that are best on MBPP (0), GSM8K (1) or Wikinews (2)."""
    return [
        [POST_TRAINED_STRATEGIES[index] for index in np.flatnonzero(table[:, column] == table[:, column].max())]
        for table in POST_TRAINED.values()
    ]


def closed_cells(strategies: Sequence[str]) -> int:
    """Count those of the 18 closed-ended cells (nine models, MBPP and GSM8K) where one of ``strategies`` is best."""
    return sum(bool(set(strategies) & set(names)) for column in (0, 1) for names in best(column))


def greedy_is_worst() -> int:
    """Count those of the 18 closed-ended cells in which no strategy is below greedy search."""
    return sum(bool(table[0, column] == table[:, column].min()) for table in POST_TRAINED.values() for column in (0, 1))


def statements() -> dict[str, str]:
    """Write what the tables say about each of the rules that the bench tests, as a sentence."""
    fires = above_the_limit()
    spreads = [(spread(base), spread(aligned)) for base, aligned in PAIRS.values()]
    pairs = "; ".join(
        f"{name} {100 * base:.1f} % against {100 * aligned:.1f} %"
        for name, (base, aligned) in zip(PAIRS, spreads, strict=True)
    )
    return {
        "spread": f"The rule as stated fires for {len(fires)} of {len(POST_TRAINED)} post-trained models "
        f"({', '.join(fires)}; MBPP or GSM8K, table of arXiv 2503.23924), so it does not separate aligned models.",
        "repetition": "No printed table holds repetition; rep-4 of greedy search is called high in arXiv 2202.06417.",
        "incoherence": "No printed table holds it.",
        "closed_ended": f"FSD or FSD-d is best in {closed_cells(['FSD', 'FSD-d'])} of 18 closed-ended cells of arXiv "
        f"2503.23924's table, temperature in {closed_cells(['temperature'])}; greedy search is worst in"
        f" {greedy_is_worst()}.",
        "stability": f"Spread of base against aligned on MBPP (arXiv 2402.06925): {pairs}. arXiv 2503.23924's table "
        "has no base model.",
    }


# Perplexities, and the claims' rules on them.

DENSE_4096, DENSE_2048, DENSE_128 = 5.12, 5.47, 12.62

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

UNSTRUCTURED: dict[str, tuple[float, Sequence[float]]] = {
    "Wanda": (DENSE_4096, (5.14, 5.23, 5.36, 5.64, 6.31, 9.23, 57.25, 4262)),
    "SparseGPT": (DENSE_4096, (5.14, 5.23, 5.34, 5.56, 6.09, 7.83, 15.95, 50.16)),
    "ADMM": (DENSE_4096, (5.13, 5.21, 5.31, 5.50, 5.93, 7.11, 12.07, 29.22)),
    "RIA": (DENSE_2048, (5.48, 5.52, 5.63, 5.95, 6.80, 10.93, 86.4, 3833)),
}
"""Calibrated method -> dense perplexity, and perplexities at SHARES. Magnitude reads no calibration text."""

STRUCTURED: dict[str, tuple[float, Sequence[float]]] = {
    "LLM-Pruner": (DENSE_128, (13.83, 20.01, 27.45, 70.1, 316.7, 673, 1602)),
    "FLAP": (DENSE_128, (13.48, 16.33, 20.25, 28.60, 42.80, 119, 1007, 2799)),
    "SLEB": (DENSE_2048, (6.47, 8.11, 13.82, 29.93, 106.2, 402, 1871, 2868)),
    "SliceGPT": (DENSE_2048, (5.65, 6.49, 8.15, 12.13, 19.54, 32.0, 60.0, 163)),
}
"""Method without training afterwards -> the same."""

PATTERNS = {"magnitude": (14.90, 54.39, 16.53), "Wanda": (6.31, 10.54, 7.67), "SparseGPT": (6.09, 8.11, 6.83)}
"""Method -> perplexity at 50 %, with 2:4 and with 4:8, all of 4,096 tokens."""

CALIBRATED: dict[str, Sequence[tuple[float, float, float]]] = {
    "Wanda": ((0.5, 6.31, 6.58), (0.6, 9.23, 13.46), (0.7, 57.2, 255.6)),
    "SparseGPT": ((0.7, 15.9, 29.0),),
    "ADMM": ((0.7, 12.1, 25.7),),
}
"""Method -> (share, perplexity of WikiText-2 calibrated on it, and calibrated on Penn Treebank)."""

BITS: dict[str, Sequence[tuple[float, float]]] = {
    "GPTQ": ((2.0, 1784), (3.0, 7.58), (4.0, 5.75), (8.0, 5.47)),
    "AWQ": ((3.0, 6.24), (4.0, 5.60)),
    "GGUF": ((3.36, 5.86), (3.92, 5.55), (4.84, 5.45), (8.50, 5.40)),
}
"""Method -> (bits, perplexity), GGUF's as its files' sizes have them: Q2_K, Q3_K_M, Q4_K_M, Q8_0."""


COMBINED: dict[float, tuple[float, float, float]] = {
    0.5: (6.08, 6.52, 9.10),
    0.6: (7.89, 8.43, 13.2),
    0.7: (15.9, 19.4, 33.3),
    0.8: (49, 59, 109),
}
"""Share that SparseGPT removes -> perplexity with 16 bits, and with GPTQ's 4 and 3. Eight bits change nothing alone."""


def curves(rows: dict[str, tuple[float, Sequence[float]]]) -> Curves:
    """Return the points of printed rows."""
    return {
        method: [Point.printed(share, perplexity, dense) for share, perplexity in zip(SHARES, row, strict=False)]
        for method, (dense, row) in rows.items()
    }


def bit_curves() -> Curves:
    """Return the points of BITS."""
    return {
        method: [Point.printed(-bits, perplexity, DENSE_2048) for bits, perplexity in row]
        for method, row in BITS.items()
    }


def _compare(differences: Sequence[float], what: str) -> Finding:
    """Judge printed differences as measured ones are, which have no interval: the worst and the best bound them."""
    agreeing = sum(difference > 0 for difference in differences)
    verdict = decide(min(differences), max(differences), agreeing, len(differences))
    return Finding(verdict, f"{agreeing} of {len(differences)} {what}", comparisons=len(differences))


def doubled() -> list[Cause]:
    """Find why the calibrated methods of CALIBRATED are above twice the base's perplexity."""
    explained = []
    for method, rows in CALIBRATED.items():
        own_curve = curves(UNSTRUCTURED)[method]
        on_other = [Point.printed(share, other, DENSE_4096) for share, _, other in rows]
        for share, own, other in rows:
            points = Point.printed(share, own, DENSE_4096), Point.printed(share, other, DENSE_4096)
            for name, point, compared, curve in (
                ("WikiText-2", points[0], points[1], own_curve),
                ("Penn Treebank", points[1], points[0], on_other),
            ):
                if point.is_lost:
                    same = [Arm("the other set", OTHER_SET, compared)]
                    milder = [Arm(f"{100 * each.x:g} %", "", each) for each in curve if each.x < share]
                    cause, why = causes.explain(point, True, same, milder)
                    ends = (point.value, point.low, point.high)
                    explained.append(Cause(f"{method} {100 * share:g} % {name}", method, cause, why, *ends))
    return explained


def _alone_in_no_more_bits(bits: float) -> float | None:
    """Return ln of GPTQ's perplexity ratio with the most bits that are no more than ``bits``."""
    fewer = [(own, perplexity) for own, perplexity in BITS["GPTQ"] if own <= bits + 1e-9]
    return math.log(max(fewer)[1] / DENSE_2048) if fewer else None


def _combined() -> tuple[list[float], list[float]]:
    """Compare COMBINED with one kind of no more bits, a mask of one bit counted, and with both parts alone."""
    at_equal_bits, with_parts = [], []
    alone = {bits: math.log(perplexity / DENSE_2048) for bits, perplexity in BITS["GPTQ"]}
    for share, (pruned, *both) in COMBINED.items():
        for bits, perplexity in zip((4.0, 3.0), both, strict=True):
            damage = math.log(perplexity / DENSE_4096)
            with_parts += [damage - math.log(pruned / DENSE_4096), damage - alone[bits]]
            one_kind = _alone_in_no_more_bits((1 - share) * bits + 1)
            if one_kind is not None:
                at_equal_bits.append(damage - one_kind)
    return at_equal_bits, with_parts


def findings() -> dict[str, Finding]:
    """Apply the rule of each claim to the numbers that its source printed; claims without any are left out."""
    half = SHARES.index(0.5)
    pruned = [row[half] / dense for dense, row in UNSTRUCTURED.values()]
    structured = [row[half] / dense for dense, row in STRUCTURED.values()]
    mismatched = [math.log(foreign / own) for rows in CALIBRATED.values() for _, own, foreign in rows]
    fires = above_the_limit()
    at_equal_bits, with_parts = _combined()
    return {
        "three_bits": limits.bits(bit_curves()),
        "structured_half": limits.collapsed_by(curves(STRUCTURED), 0.5, "structured pruning"),
        "structured_third": limits.collapses_between(curves(STRUCTURED), 0.3, 0.45, "structured pruning"),
        "unstructured": limits.fine_up_to(curves(UNSTRUCTURED), 0.6, "calibrated unstructured pruning"),
        "structured_worse": _compare(
            [math.log(one / other) for one in structured for other in pruned], "pairs of methods at 50 %"
        ),
        "patterns_worse": _compare(
            [math.log(pattern / free) for free, *patterns in PATTERNS.values() for pattern in patterns], "N:M at 50 %"
        ),
        # Four bits take fewer bytes than 30 % of the weights in 16 bits with a mask of one.
        "quantization_first": _compare(
            [math.log(row[6] / dense) - math.log(5.75 / DENSE_2048) for dense, row in UNSTRUCTURED.values()],
            "methods at 70 % against GPTQ with 4 bits",
        ),
        "calibration_transfer": _compare(mismatched, "methods and shares on WikiText-2, the only text printed"),
        "doubled": causes.judge(doubled()),
        "one_kind_first": _compare(at_equal_bits, "combinations of SparseGPT and GPTQ against GPTQ of no more bits"),
        "parts_first": _compare(with_parts, "combinations of SparseGPT and GPTQ against a part alone"),
        "aligned_steady": _compare(
            [float(np.std(base) / np.mean(base) - np.std(own) / np.mean(own)) for base, own in PAIRS.values()],
            "families (arXiv 2402.06925)",
        ),
        "wild_unaligned": Finding(
            SUPPORTED if not fires else CONTRADICTED if len(fires) > LEAST_FALSE else NOT_DECIDED,
            f"it fires for {len(fires)} of {len(POST_TRAINED)} post-trained models",
            comparisons=len(POST_TRAINED),
        ),
    }


LEAST_FALSE = 1
"""Aligned models of nine that may be called unaligned before the rule is contradicted."""

NOTHING_PRINTED = "its source prints no numbers for this rule"

ON_ITS_SOURCE = {key: f"{finding.verdict}: {finding.measured}" for key, finding in findings().items()}
"""Claim -> what its rule says of its source's own numbers, in words."""
