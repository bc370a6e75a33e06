"""Windows of a text in segments, of which some tokens are scored: conversations, texts by category.

A segment's windows follow each other from its beginning. The last one goes on in the text after the segment (that after
the last segment in the first), which fills it with real tokens and changes nothing: no token sees those after it, and
of a window only the scored tokens of its own segment count. A window without any is left out. Where fewer are asked for
than there are, they are spread evenly over the segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True)
class Segmented:
    """The windows int32 ``[n, window]`` of a text, which tokens count, bool ``[n, window]``, and their categories.

    ``available``: windows that the whole text has.
    """

    windows: Tensor
    scored: Tensor
    categories: list[str]
    available: int


def spread_evenly(available: int, count: int, avoided: Sequence[int] = ()) -> list[int]:
    """Return ``count`` of ``available`` windows, evenly spread.

    With ``avoided`` numbers of windows: of those that are in no such spread, or all of these where they are fewer.
    """
    used = {index * available // number for number in avoided for index in range(number)}
    left = [index for index in range(available) if index not in used]
    count = min(count, len(left)) if avoided else count
    return [left[index * len(left) // count] for index in range(count)]


def cut_segments(
    tokens: Tensor,
    scored: Tensor,
    segments: pd.DataFrame,
    window: int,
    count: int | str,
    leading: Sequence[int],
    avoided: Sequence[int] = (),
) -> Segmented:
    """Cut ``count`` (or ``"all"``) windows of tokens int32 ``[n]``, of which those of ``scored`` bool ``[n]`` count.

    ``segments``: the columns ``tokens`` and ``category`` of each in their order. Every window begins with the tokens
    ``leading``. ``avoided``: see ``spread_evenly``. Raises ValueError where there are fewer windows.
    """
    taken = window - len(leading)
    ends = torch.tensor(segments["tokens"].to_numpy()).cumsum(0)
    begins = ends - torch.tensor(segments["tokens"].to_numpy())
    cut = [torch.arange(begin, end, taken) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    of_segment = torch.repeat_interleave(torch.arange(len(cut)), torch.tensor([len(starts) for starts in cut]))
    places = torch.cat(cut)[:, None] + torch.arange(taken)
    inside = places < ends[of_segment][:, None]
    places = places % len(tokens)
    counted = inside & scored[places]
    # Without a token in front of it, the first one is not predicted.
    counted[:, : 0 if leading else 1] = False
    with_any = counted.any(1).nonzero()[:, 0]
    available = len(with_any)
    wanted = available if count == "all" else int(count)
    if available < (2 if avoided else max(wanted, 2)):
        raise ValueError(f"{len(tokens)} tokens make {available} windows of {window}, not {max(wanted, 2)}")
    chosen = with_any[spread_evenly(available, wanted, avoided)]
    front = torch.tensor(leading, dtype=tokens.dtype).expand(len(chosen), -1)
    names = segments["category"].tolist()
    return Segmented(
        windows=torch.cat([front, tokens[places[chosen]]], dim=1),
        scored=torch.cat([torch.zeros(front.shape, dtype=torch.bool), counted[chosen]], dim=1),
        categories=[names[index] for index in of_segment[chosen].tolist()],
        available=available,
    )
