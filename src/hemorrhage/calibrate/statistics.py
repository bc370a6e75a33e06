"""What a calibration set does inside the dense model: second moments of inputs, and block influence.

The decoder blocks run one after the other over all windows, so that beside the hidden states of the
windows only one block's matrices are in memory. Every block sees the dense model's own hidden states: errors
of a compressed block are not propagated to the next, unlike in the sequential originals of GPTQ, SparseGPT
and Wanda. That makes the statistics the same for every method and setting.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tqdm import tqdm

from hemorrhage.calibrate import triangle
from hemorrhage.compress.blocks import blocks, linears_of
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

BATCH_TOKENS = 2048
"""Tokens that run through a block at once: large enough for the matrix products, small in memory."""


def collect(model: PreTrainedModel, tokens: Tensor, file: Path) -> list[float]:
    """Write the second moments of every input of linear layers to ``file``; return the block influences.

    ``tokens`` int [samples, length]. ``file`` becomes a safetensors file with, for each input that linear
    layers share, the upper triangle of the mean of x xᵀ over all tokens, float32, under the name of the first
    linear that reads it; its metadata key ``shared`` is a JSON object ``{first linear: [linears]}``.

    Block influence is ShortGPT's (arXiv 2403.03853): 1 - mean over tokens of cos(x_i, x_{i+1}) of the hidden
    states that enter and leave block i.
    """
    with torch.inference_mode():
        shared = shared_inputs(model, tokens[:1, :8])
        linears = linears_of(model)
        widths = {first: linears[first].in_features for first in shared}
        size = sum(4 * triangle.length(width) for width in widths.values())
        log.info("second moments of %d inputs: %.1f MB", len(widths), size / 1e6)
        batches = tokens.long().to(model.device).split(_batch(*tokens.shape))
        states, arguments = _enter(model, batches)
        influence = []
        with file.open("wb") as stream:
            _write_header(stream, widths, shared)
            for index, block in enumerate(tqdm(blocks(model), desc="calibrate", unit="block", mininterval=5)):
                inside = set(block.modules())
                inputs = {first: linears[first] for first in shared if linears[first] in inside}
                moments, similarity = _run(block, states, arguments[index], inputs)
                influence.append(1 - similarity / tokens.numel())
                for moment in moments.values():
                    for row in triangle.rows((moment / tokens.numel()).float().cpu()):
                        stream.write(row.numpy().tobytes())
    return influence


def shared_inputs(model: PreTrainedModel, tokens: Tensor) -> dict[str, list[str]]:
    """``{first linear: [linears]}`` of the linear layers of the decoder blocks that read the same tensor.

    Observed in a forward pass over ``tokens``, and so independent of what an architecture calls its layers.
    Raises ValueError for a linear layer that the pass does not reach.
    """
    names = {module: name for name, module in linears_of(model).items()}
    # The tensors are kept until the end, or else a later one could lie where an earlier one was freed.
    seen: dict[tuple[int, ...], tuple[str, Tensor]] = {}
    shared: dict[str, list[str]] = {}

    def note(module: Any, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        first, _ = seen.setdefault((x.data_ptr(), *x.shape, *x.stride()), (names[module], x))
        shared.setdefault(first, []).append(names[module])

    hooks = [module.register_forward_pre_hook(note) for module in names]
    model.get_decoder()(tokens.long().to(model.device), use_cache=False)
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


def _enter(model: PreTrainedModel, batches: tuple[Tensor, ...]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Hidden states that enter the first block, a tensor a batch, and the other arguments of each block.

    While the decoder runs, each block is a recorder that hands its input on, so this costs no computation.
    All batches have one shape; masks and positions of the first are those of all.
    """
    stack = blocks(model)
    states: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def recorder(index: int) -> Any:
        def forward(hidden: Tensor, **keywords: Any) -> Tensor:
            if index == 0:
                states.append(hidden.clone())
            if len(states) == 1:
                arguments.append(keywords)
            return hidden

        return forward

    for index, block in enumerate(stack):
        block.forward = recorder(index)
    try:
        for batch in batches:
            model.get_decoder()(batch, use_cache=False)
    finally:
        for block in stack:
            del block.forward
    return states, arguments


def _run(
    block: nn.Module, states: list[Tensor], arguments: dict[str, Any], inputs: dict[str, nn.Linear]
) -> tuple[dict[str, Tensor], float]:
    """Run one block over all batches and replace ``states`` by what leaves it.

    Returns the sums of x xᵀ (upper triangles of float64 matrices) for each of ``inputs``, and the sum of
    the tokens' cosines between the states before and after.
    """
    moments = {
        name: torch.zeros(
            module.in_features, module.in_features, dtype=torch.float64, device=states[0].device
        )
        for name, module in inputs.items()
    }
    hooks = [
        module.register_forward_pre_hook(lambda _, x, moment=moments[name]: _accumulate(moment, x[0]))
        for name, module in inputs.items()
    ]
    similarity = 0.0
    for index, before in enumerate(states):
        after = block(before, **arguments)
        after = after[0] if isinstance(after, tuple) else after
        similarity += torch.cosine_similarity(before, after, dim=-1).double().sum().item()
        states[index] = after
    for hook in hooks:
        hook.remove()
    return moments, similarity


def _accumulate(moment: Tensor, x: Tensor) -> None:
    """Add xᵀx of a batch to the upper triangle of ``moment``.

    The products of a batch are summed in float32, the batches in float64. In four strips, which leaves out
    most of the lower triangle: 5/8 of the full product.
    """
    x = x.reshape(-1, x.shape[-1]).float()
    for strip in _strips(len(moment)):
        moment[strip, strip.start :] += x[:, strip].T @ x[:, strip.start :]


def _strips(width: int) -> Iterator[slice]:
    step = -(-width // 4)
    return (slice(start, min(start + step, width)) for start in range(0, width, step))


def _write_header(stream: BinaryIO, widths: dict[str, int], shared: dict[str, list[str]]) -> None:
    """Header of the safetensors format, whose tensors then follow in the order of ``widths``.

    Written by hand because the library wants all tensors in memory at once.
    """
    header: dict[str, Any] = {"__metadata__": {"shared": json.dumps(shared)}}
    offset = 0
    for name, width in widths.items():
        end = offset + 4 * triangle.length(width)
        header[name] = {"dtype": "F32", "shape": [triangle.length(width)], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
