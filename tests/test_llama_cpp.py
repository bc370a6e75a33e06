"""Perplexity and KL of GGUF variants against llama.cpp's own; needs the extra ``gguf``, and is skipped without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_compress_gguf import wide

pytest.importorskip("llama_cpp", reason="the extra gguf (llama-cpp-python) is not installed")

from benchmarks.llama_cpp import ours, reference, theirs, write

__all__ = ["wide"]


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(3, 500, (4, 64), generator=torch.Generator().manual_seed(0))


# llama.cpp rounds the inputs of quantized layers to 8 bits, too; ours does not.
@pytest.mark.parametrize(("kind", "perplexity", "kl"), [("q8_0", 1e-3, 0.5), ("q2_k", 1e-2, 0.05)])
def test_perplexity_and_kl_are_llama_cpps(
    wide: Path, windows: torch.Tensor, tmp_path: Path, kind: str, perplexity: float, kl: float
) -> None:
    of_base, dense = reference(wide, windows, tmp_path / "reference"), write(wide, None, tmp_path / "base")
    variant = write(wide, kind, tmp_path / "variant")
    mine, other = ours(variant.parent, wide, of_base, windows), theirs(variant, dense, windows)
    assert np.exp(mine.base_nll.mean()) == pytest.approx(np.exp(other.base_nll.mean()), rel=1e-4)
    assert np.exp(mine.nll.mean()) == pytest.approx(np.exp(other.nll.mean()), rel=perplexity)
    assert mine.kl.mean() == pytest.approx(other.kl.mean(), rel=kl)
