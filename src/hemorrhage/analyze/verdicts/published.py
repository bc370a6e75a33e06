"""Statements of printed tables of decoding strategies, computed from the tables themselves.

- POST_TRAINED: the decoding table of arXiv 2503.23924 as the authors' repository has it
  (whucs21Mzy/Model-Hemorrhage at af85673): MBPP, GSM8K, Wikinews of nine post-trained models.
- PAIRS: MBPP pass@1 of arXiv 2402.06925 (tables 1 and 26, as transcribed in karrtikiyer/pless-for-coding): three base
  models, each with its aligned one. Hyper-parameters are tuned per strategy there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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
