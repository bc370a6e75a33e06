"""What a calibration set does inside a model: second moments and ranges of inputs, influence of blocks.

The decoder blocks run one after the other over all windows in float32, so that besides the model as it is stored and
the hidden states of the windows only one block's matrices are in memory. Every block sees the dense model's own
hidden states, which makes the statistics the same for every method and setting; hemorrhage.calibrate.reader
collects them anew behind compressed blocks where a method asks for that.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tqdm import tqdm

from hemorrhage.calibrate import triangle
from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.models.stream import Aside, TensorFile, WriteBehind
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.models.blockwise import BlockArguments

log = logging.getLogger(__name__)

BATCH_TOKENS = 2048
"""Tokens that run through a block at once: large enough for the matrix products, small in memory."""

FEW = 128
"""Tokens whose sizes are summed at once on a processor: what they leave behind on the way stays in its cache."""


@dataclass
class Input:
    """Sums over the tokens that an input of linear layers has seen.

    ``XtX`` float32 [n, n], upper triangle of XᵀX, the sum of x xᵀ, or None where no method reads it; ``total``,
    ``square`` and ``absolute`` float64 [n]: sums of values, squares and absolute values; ``largest`` float32 [n]: the
    greatest absolute value of each feature; ``limits`` float32 [2]: the least (at most 0) and greatest (at least 0) of
    all values.
    """

    XtX: Tensor | None
    total: Tensor
    square: Tensor
    absolute: Tensor
    largest: Tensor
    limits: Tensor
    tokens: int = 0
    finished: bool = False
    """True once ``XtX`` was divided by the tokens and mirrored below the diagonal."""

    @classmethod
    def empty(cls, width: int, device: Any, second_moments: bool) -> Input:
        """Return the sums over no tokens."""
        double = {"dtype": torch.float64, "device": device}
        return cls(
            torch.zeros(width, width, device=device) if second_moments else None,
            torch.zeros(width, **double),
            torch.zeros(width, **double),
            torch.zeros(width, **double),
            torch.zeros(width, device=device),
            torch.zeros(2, device=device),
        )

    def see(self, x: Tensor) -> None:
        """Add the tokens of ``x`` [..., n].

        Products are summed in float32, as in the authors' code of GPTQ and SparseGPT. Nothing waits for the device.
        """
        x = x.reshape(-1, x.shape[-1]).float().contiguous()
        if self.XtX is not None:
            triangle.add_square(self.XtX, x)
        widen(self.limits, x)
        for few in x.split(FEW if x.device.type == "cpu" else max(len(x), 1)):
            self.total += few.sum(0)
            size = few.abs()
            self.absolute += size.sum(0)
            self.largest = torch.maximum(self.largest, size.amax(0))
            self.square += size.square_().sum(0)
        self.tokens += len(x)

    def second_moment(self) -> Tensor:
        """Return the mean of x xᵀ: float32 [n, n].

        It is no copy, and not to be altered; no token may be seen afterwards.
        """
        assert self.XtX is not None
        if not self.finished:
            with torch.inference_mode():
                triangle.mirror(self.XtX.div_(max(self.tokens, 1)))
            self.finished = True
        return self.XtX

    def activations(self) -> dict[str, Tensor]:
        """Return mean, variance, mean and greatest absolute value of each feature, range of all, tokens seen.

        Float32.
        """
        mean = self.total / max(self.tokens, 1)
        return {
            "mean": mean.float(),
            "variance": (self.square / max(self.tokens, 1) - mean.square()).clamp_(min=0).float(),
            "mean_abs": (self.absolute / max(self.tokens, 1)).float(),
            "max_abs": self.largest,
            "rms": (self.square / max(self.tokens, 1)).sqrt().float(),
            "range": self.limits,
            "tokens": torch.tensor([float(self.tokens)]),
        }


def widen(limits: Tensor, values: Tensor) -> None:
    """Widen ``limits`` float32 [2], the least and greatest, in place so that they hold ``values``."""
    low, high = values.aminmax()
    torch.fmin(limits[0], low, out=limits[0])
    torch.fmax(limits[1], high, out=limits[1])


@dataclass
class Seen:
    """What a block saw: its inputs by first linear, the range of each linear's output, its tokens' cosines summed.

    ``outputs``: float32 [2], the least (at most 0) and greatest (at least 0); ``similarity``: a float64 number. They
    are on the device: reading a number there makes the processor wait for all that it has asked for.
    """

    inputs: dict[str, Input]
    outputs: dict[str, Tensor]
    similarity: Tensor
    after: list[Tensor]


class Stored(TypedDict):
    """Size of the input second moments, and whether they are stored."""

    hessian_bytes: int
    hessian_stored: bool


def collect(model: PreTrainedModel, tokens: Tensor, folder: Path, limit: float = float("inf")) -> Stored:
    """Write the statistics of ``model`` on ``tokens`` int [samples, length] into ``folder``.

    ``hessian.safetensors``: for each input that linear layers share, the upper triangle of the mean of x xᵀ over
    all tokens, float32, under the name of the first linear that reads it; its metadata key ``shared`` is a JSON
    object ``{first linear: [linears]}``. Left out where it would be larger than ``limit`` bytes.
    ``activations.safetensors``: ``<first>.mean``, ``<first>.variance``, ``<first>.mean_abs``, ``<first>.max_abs``,
    ``<first>.rms`` [n], ``<first>.range`` [2], ``<first>.tokens`` [1], ``<linear>.output_range`` [2].
    ``influence.json``: ``block_influence``, ShortGPT's (arXiv 2403.03853): 1 - mean over tokens of cos(x_i, x_{i+1}) of
    the hidden states that enter and leave block i; ``angular_distance`` [L+1, L+1] (arXiv 2403.17887):
    arccos(cos(x_i, x_j)) / π of the windows' last token, averaged.

    Raises ValueError where hidden states are not finite.
    """
    from safetensors.torch import save_file

    with torch.inference_mode():
        shared = shared_inputs(model, tokens[:1, :8])
        linears = linears_of(model)
        lengths = {first: [triangle.length(linears[first].in_features)] for first in shared}
        size = 4 * sum(length for (length,) in lengths.values())
        stored = size <= limit
        log.info("second moments of %d inputs: %.1f MB%s", len(shared), size / 1e6, "" if stored else ", not stored")
        activations: dict[str, Tensor] = {}
        similarities: list[Tensor] = []
        last: list[Tensor] = []
        with (
            TensorFile(
                folder / "hessian.safetensors",
                lengths if stored else {},
                torch.float32,
                {"shared": json.dumps(shared)},
            ) as moments,
            WriteBehind(moments) as file,
        ):
            walk = Walk(model, tokens, shared, folder)
            last.append(walk.last())
            for _ in tqdm(blocks(model), desc="calibrate", unit="block", mininterval=5):
                seen = walk.advance(second_moments=stored)
                walk.states = seen.after
                last.append(walk.last())
                similarities.append(seen.similarity)
                activations |= _write_moments(seen, file)
                # What one block saw leaves memory before another's is collected.
                del seen
    influence = [1 - similarity.item() / tokens.numel() for similarity in similarities]
    if not torch.tensor(influence).isfinite().all():
        raise ValueError("the hidden states of the base model are not finite; it can't be calibrated")
    save_file({name: value.cpu() for name, value in activations.items()}, folder / "activations.safetensors")
    content = {"block_influence": influence, "angular_distance": angular_distance(last)}
    (folder / "influence.json").write_text(json.dumps(content) + "\n")
    return Stored(hessian_bytes=size, hessian_stored=stored)


def _write_moments(seen: Seen, file: WriteBehind) -> dict[str, Tensor]:
    """Write the second moments of a block's inputs; return its other statistics, which are small, where they are."""
    activations: dict[str, Tensor] = {}
    for first, sums in seen.inputs.items():
        if sums.XtX is not None:
            file.write(triangle.pieces(sums.XtX.div_(sums.tokens)))
        activations |= {f"{first}.{statistic}": value for statistic, value in sums.activations().items()}
    return activations | {f"{name}.output_range": limits for name, limits in seen.outputs.items()}


class Walk:
    """The windows' hidden states on their way through the blocks, batch by batch."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tensor,
        shared: dict[str, list[str]],
        folder: Path | None = None,
        where: torch.device | None = None,
    ) -> None:
        """``tokens`` int [samples, length]; ``shared`` is that of ``shared_inputs``; ``folder``: on the disk on which
        states lie between two blocks that are too many for memory, where that is wanted; ``where``: the device that
        blocks compute on, one at a time, if it is not the model's."""
        from hemorrhage.models.blockwise import embed, to_device

        self.model = model
        self.shared = shared
        self.folder = folder
        self.where = where or model.device
        self.batches = tokens.long().to(model.device).split(_batch(*tokens.shape))
        states, arguments = embed(model, self.batches)
        self.states: list[Tensor] = to_device(states, self.where)
        self.arguments: list[BlockArguments] = to_device(arguments, self.where)
        self.block = -1

    def advance(self, second_moments: bool) -> Seen:
        """Look at what the next block does with the states; they stay those that enter it.

        ``second_moments``: whether those of inputs are wanted.
        """
        from hemorrhage.models.blockwise import in_float32

        self.block += 1
        block = blocks(self.model)[self.block]
        inside = set(block.modules())
        linears = {name: linear for name, linear in linears_of(self.model).items() if linear in inside}
        firsts = [first for first in self.shared if first in linears]
        with in_float32(block, self.where):
            return observe(block, self.states, self.arguments[self.block], linears, firsts, second_moments, self.folder)

    def leave(self) -> None:
        """Pass the states through the block as it is now."""
        from hemorrhage.models.blockwise import in_float32, run_block

        block, aside = blocks(self.model)[self.block], Aside(self.folder)
        with in_float32(block, self.where):
            for index, before in enumerate(self.states):
                self.states[index] = aside.put(run_block(block, before, self.arguments[self.block], index))

    def last(self) -> Tensor:
        """Return the hidden states of the windows' last tokens: float32 [samples, hidden]."""
        return torch.cat([state[:, -1] for state in self.states]).float()


def observe(
    block: nn.Module,
    states: list[Tensor],
    arguments: BlockArguments,
    linears: dict[str, nn.Linear],
    firsts: list[str],
    second_moments: bool,
    folder: Path | None,
) -> Seen:
    """Run ``block`` over all batches of ``states`` and look at the inputs ``firsts`` and outputs of ``linears``.

    The block is in float32, on the device of the states. What leaves it is put aside in ``folder``
    (hemorrhage.models.stream).
    """
    from hemorrhage.models.blockwise import run_block
    from hemorrhage.models.experts import every_token

    inputs = {first: Input.empty(linears[first].in_features, states[0].device, second_moments) for first in firsts}
    outputs = {name: torch.zeros(2, device=states[0].device) for name in linears}
    hooks = [
        linears[first].register_forward_pre_hook(lambda _, x, sums=sums: sums.see(x[0]))
        for first, sums in inputs.items()
    ]
    hooks += [
        linear.register_forward_hook(lambda _, __, y, limits=outputs[name]: widen(limits, y))
        for name, linear in linears.items()
    ]
    similarity, after = torch.zeros((), dtype=torch.float64, device=states[0].device), []
    aside = Aside(folder)
    try:
        with every_token(block):
            for number, before in enumerate(states):
                leaving = run_block(block, before, arguments, number)
                similarity += torch.cosine_similarity(before, leaving, dim=-1).double().sum()
                after.append(aside.put(leaving))
    finally:
        for hook in hooks:
            hook.remove()
    return Seen(inputs, outputs, similarity, after)


def angular_distance(last: list[Tensor]) -> list[list[float]]:
    """Return the mean of arccos(cos(x_i, x_j)) / π over samples.

    ``last``: [samples, hidden] for each boundary of blocks.
    """
    unit = torch.nn.functional.normalize(torch.stack(last).double(), dim=-1)
    cosine = torch.einsum("isd,jsd->ijs", unit, unit).clamp(-1, 1)
    angles: list[list[float]] = (cosine.arccos() / torch.pi).mean(-1).tolist()
    return angles


def shared_inputs(model: PreTrainedModel, tokens: Tensor) -> dict[str, list[str]]:
    """Return ``{first linear: [linears]}`` of the linear layers of the decoder blocks that read the same tensor.

    Observed in a forward pass over ``tokens``, and so independent of what an architecture calls its layers.
    Raises ValueError for a linear layer that the pass does not reach.
    """
    from hemorrhage.models.blockwise import forward_blockwise
    from hemorrhage.models.experts import every_token

    names = {module: name for name, module in linears_of(model).items()}
    # The tensors are kept until the end, or else a later one could lie where an earlier one was freed.
    seen: dict[tuple[int, ...], tuple[str, Tensor]] = {}
    shared: dict[str, list[str]] = {}

    def note(module: Any, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        first, _ = seen.setdefault((x.data_ptr(), *x.shape, *x.stride()), (names[module], x))
        shared.setdefault(first, []).append(names[module])

    hooks = [module.register_forward_pre_hook(note) for module in names]
    with every_token(model):
        forward_blockwise(model, tokens.long().to(model.device))
    for hook in hooks:
        hook.remove()
    missing = set(names.values()) - {name for group in shared.values() for name in group}
    if missing:
        raise ValueError(f"no token reaches {min(missing)}: its inputs can't be calibrated")
    return shared


def _batch(samples: int, length: int) -> int:
    """Windows per batch: a divisor of ``samples``, so that all batches have one shape and one mask."""
    fitting = max(1, BATCH_TOKENS // length)
    return max(size for size in range(1, min(fitting, samples) + 1) if samples % size == 0)
