"""Masks of unstructured and N:M sparsity, and the settings that all pruning methods share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import Spacing
from hemorrhage.compress.method import ConfigJson, Settings, Wording, percent
from hemorrhage.compress.solvers.widths import input_widths
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


SHARES = Spacing(0.1, 0.9, 0.05)
"""Sparsities worth running next."""


def share_or_pattern(sparsity: float | str) -> str:
    """Return a share in per cent, a pattern as it is."""
    return percent(sparsity) if isinstance(sparsity, float) else sparsity


class SparsitySettings(Settings):
    """The share of weights that become zero, or ``"n:m"``: n of every m neighbouring inputs stay."""

    axis: ClassVar[str] = "sparsity"
    severity_field: ClassVar[str] = "sparsity"
    words: ClassVar[Mapping[str, Wording]] = {"sparsity": share_or_pattern}
    no_pattern: ClassVar[str] = "unstructured"

    sparsity: float | str

    @field_validator("sparsity", mode="before")
    @classmethod
    def _share_or_pattern(cls, value: object) -> object:
        if isinstance(value, float) and 0 < value < 1:
            return value
        if isinstance(value, str) and re.fullmatch(r"[1-9]\d*:[1-9]\d*", value):
            kept, among = map(int, value.split(":"))
            if kept < among:
                return value
        raise ValueError('a share between 0 and 1, or a pattern "n:m" with n < m such as "2:4"')

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(n, m): n weights stay of every m; None where sparsity is unstructured."""
        if isinstance(self.sparsity, float):
            return None
        kept, among = self.sparsity.split(":")
        return int(kept), int(among)

    @property
    def severity(self) -> float:
        """Share of zeros in the pruned layers."""
        if isinstance(self.sparsity, float):
            return self.sparsity
        kept, among = map(int, self.sparsity.split(":"))
        return 1 - kept / among

    @property
    def severity_pattern(self) -> str:
        """The size of a pattern's groups; nothing where sparsity is unstructured."""
        return f"n:{self.pattern[1]}" if self.pattern else ""

    @property
    def mask_bits(self) -> float:
        """Bits a weight that say which weights stay: 1 unstructured, log2(C(m, n)) / m for a pattern."""
        if self.pattern is None:
            return 1.0
        kept, among = self.pattern
        return math.log2(math.comb(among, kept)) / among

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        if self.pattern:
            for dimension, width in input_widths(config).items():
                if width % self.pattern[1]:
                    return f"sparsity {self.sparsity} does not divide the model's {dimension} of {width}"
        return None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where a pattern's groups don't divide a layer's inputs."""
        if self.pattern is None:
            return None
        among = self.pattern[1]
        odd = next(((name, each) for name, each in linears_of(model).items() if each.in_features % among), None)
        if odd is not None:
            name, linear = odd
            raise RefusedError(f"sparsity {self.sparsity} does not divide the {linear.in_features} inputs of {name}")
        return None


class CalibratedSettings(SparsitySettings):
    """Settings of methods that look at the layers' inputs.

    With ``sequential`` those are the inputs behind the blocks that are pruned already.
    """

    sequential: bool = False

    @property
    def propagates(self) -> bool:
        """True where inputs are those behind the blocks that are pruned already."""
        return self.sequential

    @property
    def statistics(self) -> tuple[str, ...]:
        """The second moments of the layers' inputs."""
        return ("hessian",)


def lowest(scores: Tensor, share: float) -> Tensor:
    """Return the boolean mask of the ``share`` lowest of all ``scores``: exactly round(share · number), any shape."""
    import numpy as np

    count = round(share * scores.numel())
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    values = scores.detach().flatten()
    if values.is_cuda:
        border = float(values.kthvalue(count).values)
    else:
        # A partition needs one copy of the scores; the indices of topk would take twice as much again.
        border = float(np.partition(values.numpy(), count - 1)[count - 1])
    mask = scores < border
    ties = (scores == border).flatten().nonzero()[: count - int(mask.sum()), 0]
    mask.view(-1)[ties] = True
    return mask


def lowest_of_rows(scores: Tensor, share: float) -> Tensor:
    """Return the boolean mask of the round(share · columns) lowest of every row of ``scores`` [rows, columns]."""
    count = round(share * scores.shape[1])
    drop = scores.topk(count, dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, drop, True)


def lowest_of_groups(scores: Tensor, kept: int, among: int, name: str = "") -> Tensor:
    """Return the boolean mask of the lowest ``among - kept`` of every ``among`` neighbouring columns of ``scores``."""
    if scores.shape[1] % among:
        raise ValueError(f"sparsity {kept}:{among}: {among} does not divide the {scores.shape[1]} inputs of {name}")
    groups = scores.reshape(-1, among)
    return lowest_of_rows(groups, 1 - kept / among).view_as(scores)


def check_zeros(linears: dict[str, nn.Linear], settings: SparsitySettings, before: float) -> None:
    """Raise ValueError where ``linears`` are not as sparse as ``settings`` say.

    Allowed are 0.1 %, half a weight per row for the rounding of Wanda's count, and the share ``before`` of
    zeros that were there before.
    """
    share = zero_share(linears)
    width = min(linear.in_features for linear in linears.values())
    slack = 0.001 + (0 if settings.pattern else 0.5 / width)
    if not settings.severity - slack <= share <= settings.severity + slack + before:
        raise ValueError(f"{100 * settings.severity:g} % of the weights were to become zero; {100 * share:.2f} % are")
    if settings.pattern:
        kept, among = settings.pattern
        for name, linear in linears.items():
            if int(linear.weight.view(-1, among).count_nonzero(dim=1).max()) > kept:
                raise ValueError(f"{name}: more than {kept} of {among} neighbouring weights are left")
