"""The cascade of errors against loops and textbooks."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from hemorrhage.evaluate.diagnostics import cascade
from hemorrhage.models.checkpoint import load
from tests.evaluate.diagnostics.literal import states_of, value


def test_cascade_against_loops(tiny: Path, damaged: Any, table: pd.DataFrame, windows: Tensor) -> None:
    x, y = states_of(load(tiny), windows), states_of(damaged, windows)

    def relative(a: Tensor, b: Tensor) -> float:
        return float(np.mean([float((s - t).norm() / s.norm()) for s, t in zip(a, b, strict=True)]))

    for layer, window in ((0, 0), (3, 1), (4, 2)):
        with torch.no_grad():
            positions = damaged.model.rotary_emb(x[layer].float(), torch.arange(windows.shape[1])[None])
            alone = damaged.model.layers[layer](x[layer].float(), position_embeddings=positions).double()[window]
        clean, a, b = x[layer][window], x[layer + 1][window], y[layer + 1][window]
        error, before = relative(a, b), relative(clean, y[layer][window])
        assert value(table, "relative_error", layer, window) == pytest.approx(error, rel=1e-4)
        assert value(table, "local_error", layer, window) == pytest.approx(relative(a, alone), rel=1e-4)
        inherited = error - relative(a, alone)
        assert value(table, "inherited_error", layer, window) == pytest.approx(inherited, rel=1e-3, abs=1e-5)
        noise = 10 * math.log10(float(a.flatten().var(correction=0) / (a - b).flatten().var(correction=0)))
        assert value(table, "sqnr", layer, window) == pytest.approx(noise, abs=1e-3)
        written = 10 * math.log10(float((a - clean).var() / (a - alone).var()))
        assert value(table, "local_sqnr", layer, window) == pytest.approx(written, abs=1e-3)
        cosines = [float(s @ t / (s.norm() * t.norm())) for s, t in zip(a, b, strict=True)]
        assert value(table, "cosine", layer, window) == pytest.approx(np.mean(cosines), rel=1e-5)
        if layer:
            assert value(table, "error_amplification", layer, window) == pytest.approx(error / before, rel=1e-3)
    assert not len(table[(table.metric == "error_amplification") & (table.layer == 0)]), "nothing over no error"
    for window in range(3):
        errors = [relative(x[layer][window], y[layer][window]) for layer in range(1, 6)]
        mean = np.mean([math.log(b / a) for a, b in itertools.pairwise(errors)])
        assert value(table, "log_amplification", -1, window) == pytest.approx(mean, abs=1e-4)


def test_unbiased_cka_against_sums_over_tokens(table: pd.DataFrame, tiny: Path, damaged: Any, windows: Tensor) -> None:
    """Of HSIC the U-statistic itself: the mean over all four different tokens."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 7, 9, generator=generator) for _ in range(2))
    y = y + x

    def hsic(a: Tensor, b: Tensor) -> float:
        k, l = (z[0].double() @ z[0].double().T for z in (a, b))  # noqa: E741
        total = number = 0.0
        n = len(k)
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total += float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]))
                            number += 1
        return total / number

    wanted = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert cascade.cka(x, y).item() == pytest.approx(wanted, rel=1e-4)
    a, b = states_of(load(tiny), windows)[3].float(), states_of(damaged, windows)[3].float()
    assert value(table, "cka", 2, 1) == pytest.approx(cascade.cka(a, b)[1].item(), rel=1e-4)


def test_cka_with_more_tokens_than_channels_is_the_textbooks() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, 40, 6, generator=generator), torch.randn(1, 40, 5, generator=generator)
    a, b = (z[0].numpy().astype(float) - z[0].numpy().astype(float).mean(0) for z in (x, y))
    wanted = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert cascade.cka(x, y).item() == pytest.approx(wanted, rel=1e-5)
    turned = x @ torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q * 3 + 1
    assert cascade.cka(x, turned).item() == pytest.approx(1, abs=1e-5)
    wide = torch.randn(1, 20, 500, generator=generator), torch.randn(1, 20, 500, generator=generator)
    assert abs(cascade.cka(*wide).item()) < 0.2, "the biased form would say 0.96"


def test_logit_lens_against_the_head_by_hand(tiny: Path, damaged: Any, table: pd.DataFrame, windows: Tensor) -> None:
    with torch.no_grad():
        p = load(tiny)(windows.long()).logits.double().log_softmax(-1)
        y = states_of(damaged, windows)
        for layer in (0, 3):
            normed = damaged.model.norm(y[layer + 1].float())
            q = damaged.lm_head(normed).double().log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1)
            for window in range(3):
                wanted = float(kl[window, [7, 23]].mean())
                assert value(table, "lens_kl", layer, window) == pytest.approx(wanted, rel=1e-4)
        q = damaged(windows.long()).logits.double().log_softmax(-1)
        final = (p.exp() * (p - q)).sum(-1)[0, [7, 23]].mean()
    assert value(table, "lens_kl", 4, 0) == pytest.approx(float(final), rel=1e-4)
