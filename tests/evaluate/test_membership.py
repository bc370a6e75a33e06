"""Min-K%++ and the overlap of two splits, written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hemorrhage.evaluate import membership


def test_a_term_is_the_log_probability_in_units_of_its_spread() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 6, 2])
    ln_p, terms = membership.min_k_terms(logits, targets)
    for row, target in enumerate(targets.tolist()):
        p = logits[row].double().softmax(-1).tolist()
        mean = sum(share * math.log(share) for share in p)
        spread = math.sqrt(sum(share * (math.log(share) - mean) ** 2 for share in p))
        assert float(ln_p[row]) == pytest.approx(math.log(p[target]), abs=1e-5)
        assert float(terms[row]) == pytest.approx((math.log(p[target]) - mean) / spread, abs=1e-4)


def test_scores_are_those_of_plain_passes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "ROWS", 5)
    windows = torch.randint(3, 500, (3, 24), generator=torch.Generator().manual_seed(1))
    found = membership.scores(model, windows)
    with torch.no_grad():
        logits = model(windows).logits
    for place, window in enumerate(windows):
        ln_p, terms = membership.min_k_terms(logits[place, :-1], window[1:])
        # The fifth of 23 tokens with the lowest terms: 4 of them.
        assert found["nll"][place] == pytest.approx(-float(ln_p.mean()), rel=1e-4)
        assert found["min_k"][place] == pytest.approx(sum(sorted(terms.tolist())[:4]) / 4, rel=1e-3)


def test_overlap_is_the_share_of_ngrams_that_both_have() -> None:
    generator = torch.Generator().manual_seed(0)
    evaluation = torch.randint(500, (4, 20), generator=generator, dtype=torch.int32)
    calibration = torch.randint(500, (6, 20), generator=generator, dtype=torch.int32)
    assert membership.overlap(evaluation, calibration) == 0
    assert membership.overlap(evaluation, evaluation) == 1
    # 15 tokens in a row have 3 of the 4 * 8 n-grams of 13 tokens.
    calibration[2, 3:18] = evaluation[1, 5:20]
    assert membership.overlap(evaluation, calibration) == pytest.approx(3 / 32)
    short = torch.ones(2, membership.NGRAM - 1, dtype=torch.int32)
    assert membership.overlap(short, short) == 0


def test_both_splits_are_scored_on_windows_spread_over_them(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Tensor] = []

    def scores(_: Any, windows: torch.Tensor) -> membership.Scores:
        read.append(windows)
        return {"nll": [], "min_k": []}

    monkeypatch.setattr(membership, "scores", scores)
    evaluation = torch.arange(20 * 16, dtype=torch.int32).view(20, 16)
    found = membership.membership_scores(model, evaluation, evaluation[:3])
    assert found.keys() == {"overlap", "evaluation", "calibration"}
    assert [len(windows) for windows in read] == [membership.WINDOWS, 3]
    assert read[0][:, 0].tolist() == [2 * 16 * number for number in range(membership.WINDOWS)]
    assert found["overlap"] == pytest.approx(3 / 20)
