"""The residual stream of one model: changes by each block, and how later blocks make up for a missing one.

States are float32 ``[n, T, d]``; each function gives a value for each of the n windows, float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from hemorrhage.models import blockwise
from hemorrhage.models.blocks import blocks
from hemorrhage.models.formats.sliced import SlicedBlock
from hemorrhage.models.head import head_of
from hemorrhage.models.refused import RefusedError

LARGE = 1e4
"""States of this size make the constant that norms add under the root vanish."""


def carry_over(block: nn.Module, x: Tensor) -> Tensor:
    """Return what ``block`` hands on of ``x`` [..., d] if it adds nothing: ``x``, in a sliced model rotated."""
    return x @ block.attention_shortcut @ block.mlp_shortcut if isinstance(block, SlicedBlock) else x


def stream(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Return what a block did to the stream; ``before`` is what it was handed (``carried``), ``after`` what left it.

    Means over tokens: block influence ``1 - cos`` (ShortGPT, arXiv 2403.03853), angular distance ``arccos(cos) / π``
    (Gromov et al., arXiv 2403.17887, there of the last token), growth of the norm ``‖after‖ / ‖before‖``, and the
    norm of what was written over that of the stream.
    """
    cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1).clamp(-1, 1)
    old, new, written = (x.norm(dim=-1).double() for x in (before, after, after - before))
    # Of a state of zeros nothing grows.
    old = old.where(old > 0, torch.nan)
    return {
        "block_influence": 1 - cosine.mean(-1),
        "angular_distance": cosine.arccos().mean(-1) / math.pi,
        "norm_growth": (new / old).nanmean(-1),
        "write_norm": (written / old).nanmean(-1),
    }


def effective_rank(x: Tensor) -> Tensor:
    """Return ``exp(H(σ² / Σσ²))`` of the singular values σ of each [T, d] (Roy and Vetterli 2007, there of σ): [n]."""
    moment = x @ x.transpose(1, 2) if x.shape[1] <= x.shape[2] else x.transpose(1, 2) @ x
    squares = torch.linalg.eigvalsh(moment.double()).clamp_min(0)
    share = squares / squares.sum(-1, keepdim=True)
    return (-torch.xlogy(share, share).sum(-1)).exp()


def repair(model: PreTrainedModel, tokens: Tensor) -> list[dict[str, Tensor]]:
    """Measure self-repair when a block's write is left out (arXiv 2307.15771, 2402.15390), for each block in order.

    Of the centred logit of the right token (its distance from the mean over the vocabulary), means over the predicted
    tokens of ``tokens`` int64 [n, T]: ``direct_effect`` DE, what the write adds by itself (taken out of the last state
    only, the last norm's root frozen); ``total_effect`` TE, what is lost where the block is left out and the later ones
    compute on; ``self_repair`` = 1 - TE / DE, NaN where DE is 0. As many passes as blocks, half of each on average.
    Raises RefusedError where the last norm does more than centre, scale and add.
    """
    with torch.no_grad():
        (first,), arguments = blockwise.embed(model, (tokens,))
        states = [first]
        stack: Any = blocks(model)
        for block, keywords in zip(stack, arguments, strict=True):
            states.append(_step(block, states[-1], keywords))
        (final,) = blockwise.final_norm(model, (tokens,), states[-1:])
        directions = _directions(model, tokens)
        if final.shape != states[-1].shape:
            raise RefusedError("self-repair needs a last norm that leaves the width as it is")
        norm = _frozen(model, tokens, states[-1], final)
        whole = _centred(final, directions)
        effects = []
        for index in tqdm(range(len(stack)), desc="ablation", unit="block", mininterval=5, leave=False):
            handed_on = carry_over(stack[index], states[index])
            written, without = states[index + 1] - handed_on, handed_on
            for later, keywords in zip(stack[index + 1 :], arguments[index + 1 :], strict=True):
                written = carry_over(later, written)
                without = _step(later, without, keywords)
            direct = _centred(norm.of_write(written), directions).double().mean(-1)
            (ablated,) = blockwise.final_norm(model, (tokens,), [without])
            total = (whole - _centred(ablated, directions)).double().mean(-1)
            ratio = torch.where(direct == 0, torch.nan, 1 - total / direct)
            effects.append({"direct_effect": direct, "total_effect": total, "self_repair": ratio})
    return effects


def _step(block: nn.Module, states: Tensor, keywords: blockwise.BlockArguments) -> Tensor:
    with blockwise.in_float32(block):
        return blockwise.run_block(block, states, keywords)


def _directions(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the factors [n, T - 1, d] that make the next tokens' centred logits of final hidden states."""
    head = head_of(model)
    mean = head.weight.mean(0, dtype=torch.float32)
    directions = head.weight[tokens[:, 1:]].float() - mean
    factor = head.input_scale * head.output_scale
    return directions if factor == 1 else directions * factor


def _centred(hidden: Tensor, directions: Tensor) -> Tensor:
    return (hidden[:, :-1] * directions).sum(-1)


@dataclass(frozen=True)
class _FrozenNorm:
    """The last norm at the states of a text, its root kept: the part of it that is linear.

    ``gain`` [n, T, d]: factors of the state, of a layer norm, which ``centres``, of the state without its mean.
    """

    gain: Tensor
    centres: bool = False

    def of_write(self, written: Tensor) -> Tensor:
        """Return what ``written`` [n, T, d] adds to the final state; a bias adds nothing to a difference."""
        return (written - written.mean(-1, keepdim=True) if self.centres else written) * self.gain


def _frozen(model: PreTrainedModel, tokens: Tensor, last: Tensor, final: Tensor) -> _FrozenNorm:
    """Return the last norm of states ``last`` [n, T, d] that it makes ``final``.

    The weights come from states of one size whose root is known, the root that a token is divided by from the token. A
    norm that centres leaves nothing of a state of equal entries.
    """
    even = torch.full_like(last[:1, :1], LARGE)
    weights, negative = blockwise.final_norm(model, (tokens, tokens), [even, -even])
    if torch.equal(weights, -negative) and weights.any():
        return _FrozenNorm(weights / _root(weights * last, final))
    signs = torch.ones_like(even)
    signs[..., 1::2] = -1
    up, down = blockwise.final_norm(model, (tokens, tokens), [LARGE * signs, -LARGE * signs])
    bias, centres = (up + down) / 2, not ((weights - negative) / 2).any()
    centred = signs - signs.mean(-1, keepdim=True) if centres else signs
    weights = (up - down) / 2 * centred.square().mean(-1, keepdim=True).sqrt() / centred
    scaled = weights * (last - last.mean(-1, keepdim=True) if centres else last)
    root = _root(scaled, final - bias)
    if not torch.allclose(scaled / root + bias, final, rtol=1e-3, atol=1e-3 * final.abs().max().item()):
        raise RefusedError("self-repair needs a last norm that only centres, scales and adds")
    return _FrozenNorm(weights / root, centres)


def _root(scaled: Tensor, final: Tensor) -> Tensor:
    """Return what a norm divides ``scaled`` [..., d] by to make ``final``."""
    return (scaled.square().sum(-1, keepdim=True) / (scaled * final).sum(-1, keepdim=True)).nan_to_num()
