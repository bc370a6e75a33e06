"""The residual stream of one model: changes by each block, and how later blocks make up for a missing one.

States are float32 ``[n, T, d]``; each function gives a value for each of the n windows, float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from hemorrhage.models import blockwise
from hemorrhage.models.blocks import blocks
from hemorrhage.models.formats.sliced import SlicedBlock
from hemorrhage.models.head import head_of

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
    tokens of ``tokens`` int64 [n, T]: ``direct_effect`` DE, what the write adds by itself (taken out of the last
    state only, the last norm frozen); ``total_effect`` TE, what is lost where the block is left out and the later ones
    compute on; ``self_repair`` = 1 - TE / DE, NaN where DE is 0. As many passes as blocks, half of each on average.
    Raises ValueError where the last norm does more than scale.
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
            raise ValueError("self-repair needs a last norm that leaves the width as it is")
        gain = _frozen(model, tokens, states[-1], final)
        whole = _centred(final, directions)
        effects = []
        for index in tqdm(range(len(stack)), desc="ablation", unit="block", mininterval=5, leave=False):
            handed_on = carry_over(stack[index], states[index])
            written, without = states[index + 1] - handed_on, handed_on
            for later, keywords in zip(stack[index + 1 :], arguments[index + 1 :], strict=True):
                written = carry_over(later, written)
                without = _step(later, without, keywords)
            direct = _centred(written * gain, directions).double().mean(-1)
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


def _frozen(model: PreTrainedModel, tokens: Tensor, last: Tensor, final: Tensor) -> Tensor:
    """Return the factors [n, T, d] that the last norm multiplies ``last`` [n, T, d] with to give ``final``.

    The weights come from a state of equal entries, the root that a token is divided by from the token.
    """
    even = torch.full_like(last[:1, :1], LARGE)
    weights, negative = blockwise.final_norm(model, (tokens, tokens), [even, -even])
    if not torch.equal(weights, -negative):
        raise ValueError("self-repair needs a last norm that only scales; leave this model out of diagnostics.ablate")
    scaled = weights * last
    root = (scaled.square().sum(-1, keepdim=True) / (scaled * final).sum(-1, keepdim=True)).nan_to_num()
    return weights / root
