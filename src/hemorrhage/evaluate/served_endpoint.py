"""What a server over HTTP does to the tokens of a window: of a top k, KL is an interval and never a point.

The server gives the log-probability of each token of the text and of the k likeliest ones. So its negative
log-likelihood and its likeliest token are exact; a divergence has two ends, between which it lies whatever the server
gives the other tokens (hemorrhage.engines.topk).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from hemorrhage.engines.endpoint_dialects import Answer
from hemorrhage.engines.endpoint_spec import EndpointSpec
from hemorrhage.engines.topk import Floats, Interval, logit_range
from hemorrhage.evaluate.served_damage import LOGITS
from hemorrhage.models.head import Head
from hemorrhage.runtime.address import Json

Predictor = tuple[Head, Tensor]
"""A head and final states [n, hidden]."""

IS_RMS = 1e-3
"""Relative difference from a root-mean-square norm with a gain, at most, of what is taken for one."""


class Server(EndpointSpec):
    """A server as the step is given it; ``name`` is what its numbers are called by."""

    name: Annotated[str, Field(min_length=1)]

    @property
    def tag(self) -> str:
        """Name in the tag of a protocol; no release is known of a server."""
        return f"{self.name}-http"

    def as_json(self) -> Json:
        """Return it as an engine is named in a manifest."""
        return {"name": self.name, "title": f"{self.model} at {urlsplit(self.openai).netloc}", "version": ""}


def compare(
    answer: Answer, base: Predictor, weights: Predictor, window: Sequence[int], largest_range: float
) -> pd.DataFrame:
    """Return a row per predicted token of a window, with the columns of ASKED after ``position``.

    ``largest_range``: how far apart two logits of the served model can be (``range_of``).
    """
    parts = []
    at_once = max(1, LOGITS // len(base[0]))
    for start in range(0, len(window) - 1, at_once):
        part = slice(start, min(start + at_once, len(window) - 1))
        of_base, of_weights = (_log_probabilities(head, states[part]) for head, states in (base, weights))
        tokens = window[part.start : part.stop + 1]
        parts.append(_compare(_positions(answer, part), of_base, of_weights, tokens, largest_range))
    return pd.concat(parts, ignore_index=True)


def _compare(
    answer: Answer, base: Floats, weights: Floats, window: Sequence[int], largest_range: float
) -> pd.DataFrame:
    targets = np.asarray(window[1:])[:, None]
    kl_low, kl_high = _ends(answer.kl(base, window, largest_range))
    kernels_low, kernels_high = _ends(answer.kl(weights, window, largest_range))
    top_base, top_weights = base.argmax(1), weights.argmax(1)
    top = answer.ids[:, 0] if answer.ids.shape[1] else np.full(len(base), -1)

    def same(first: np.ndarray, second: np.ndarray) -> Floats:
        return np.where((first < 0) | (second < 0), np.nan, first == second)

    columns = {
        "nll": -answer.target,
        "nll_weights": -np.take_along_axis(weights, targets, 1)[:, 0],
        "base_nll": -np.take_along_axis(base, targets, 1)[:, 0],
        "kl_low": kl_low,
        "kl_high": kl_high,
        "kl_weights": (np.exp(base) * (base - weights)).sum(1),
        "kernels_low": kernels_low,
        "kernels_high": kernels_high,
        "same_top1": same(top, top_base),
        "same_top1_weights": same(top_weights, top_base),
        "same_top1_kernels": same(top, top_weights),
    }
    return pd.DataFrame({name: values.astype(np.float32) for name, values in columns.items()})


def _positions(answer: Answer, part: slice) -> Answer:
    """Return an answer of some of its positions."""
    return replace(
        answer,
        target=answer.target[part],
        ids=answer.ids[part],
        logprobs=answer.logprobs[part],
        cap=answer.cap[part],
    )


def _ends(intervals: Sequence[Interval]) -> tuple[Floats, Floats]:
    low, high = np.array(intervals, dtype=np.float64).reshape(-1, 2).T
    return low, high


@torch.inference_mode()
def _log_probabilities(head: Head, states: Tensor) -> Floats:
    logits = head.logits(states).double()
    return np.asarray(torch.log_softmax(logits, dim=-1).cpu().numpy())


def range_of(head: Head, ones: Tensor, sample: Tensor, normed: Tensor) -> float:
    """Return how far apart two logits can be at most behind a root-mean-square norm; infinity behind another norm.

    ``ones``, ``normed`` [hidden]: what the norm makes of ones, and of ``sample``.
    """
    expected = sample / sample.square().mean().sqrt() * ones
    if (normed - expected).norm() > IS_RMS * expected.norm():
        return float("inf")
    scale = head.output_scale
    gain = (ones * head.input_scale * scale).double().cpu().numpy()
    bias = None if head.bias is None else (head.bias.double() * scale).cpu().numpy()
    # A softcap brings logits nearer to each other.
    return logit_range(head.weight.double().cpu().numpy(), gain, bias)
