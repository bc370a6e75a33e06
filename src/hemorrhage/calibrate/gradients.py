"""Gradients of the dense model on a calibration set: of the loss, or of each decoder block's own output.

python -m hemorrhage.calibrate.gradients OUT --base DIR --calibration DIR --spec JSON

``spec``: ``{"part": "loss"}`` or ``{"part": "local"}``. The windows are those of the calibration folder's
``tokens.safetensors``, int [samples, length]; every gradient is that of one window alone. ``OUT`` gets
``gradients.safetensors`` with, for each linear layer of the decoder blocks (W: its weight [rows, columns]),

part ``loss``, with L = the mean negative log-likelihood (nats) of the ``length - 1`` tokens of a window that
follow another, and g = dL/dW of one window:

- ``<name>.mean``, bfloat16 [rows, columns]: the mean of g over the windows.
- ``<name>.rms``, bfloat16 [rows, columns]: the root of the mean of g² over the windows. GBLM's G (arXiv
  2311.04902), the root of the sum, is ``sqrt(samples)`` times it; LLM-Pruner's diagonal of the Hessian
  (arXiv 2305.11627), the mean of g², is its square.
- ``<name>.output``, float32 [rows]: the mean over all ``samples · length`` positions of the squared gradient
  of a window's *summed* negative log-likelihood, ``(length - 1) · L``, with respect to the layer's output at
  that position. The last position of a window predicts nothing and adds zero. It is the diagonal of K-FAC's
  factor of the output (arXiv 1503.05671) for the labels of the text (the empirical Fisher matrix).

part ``local``, with y = the output of a decoder block for one window [length, hidden], every block getting
the dense model's hidden states:

- ``<name>.local``, bfloat16 [rows, columns]: the root of the mean over the windows of (d‖y‖₂/dW)², the norm
  taken over the whole window: Wanda++'s regional gradient (arXiv 2503.04992).

Memory: ``loss`` holds the model in float32, two float32 accumulators for every weight of the linear layers,
the activations of one window and the gradient of one layer (a gradient is added up and freed as soon as the
backward pass has it). ``local`` holds the model as it is stored, the hidden states of all windows, and one
block in float32 with its gradients and accumulators.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.models.stream import TensorFile
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import read_manifest, write_manifest, writing
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

DTYPES = {"loss": "float32", "local": "stored"}
"""What the model is loaded in, for each part."""


def gradients(out: Path, base: Path, calibration: Path, spec: Mapping[str, Any]) -> None:
    """Write ``gradients.safetensors`` into ``out``. Raises ValueError for gradients that are not finite."""
    from safetensors.torch import load_file

    from hemorrhage.models.checkpoint import load

    part = spec["part"]
    if part not in DTYPES:
        raise ValueError(f"part {part!r}: gradients are of part loss or local")
    source = read_manifest(calibration)
    tokens = load_file(calibration / "tokens.safetensors")["tokens"]
    model = load(base, DTYPES[part]).requires_grad_(False)
    with writing(out) as folder:
        measure = measure_loss if part == "loss" else measure_local
        measure(model, tokens, folder / "gradients.safetensors")
        write_manifest(
            folder,
            corpora=source["corpora"],
            spec=spec,
            samples=len(tokens),
            length=tokens.shape[1],
        )


def measure_loss(model: PreTrainedModel, tokens: Tensor, file: Path) -> None:
    """Write part ``loss`` to ``file``.

    ``model`` in float32, no weight requiring a gradient; ``tokens`` int [samples, length].
    """
    linears = linears_of(model)
    sums = {name: torch.zeros_like(linear.weight) for name, linear in linears.items()}
    squares = {name: torch.zeros_like(linear.weight) for name, linear in linears.items()}
    outputs = {
        name: torch.zeros(linear.out_features, dtype=torch.float64, device=linear.weight.device)
        for name, linear in linears.items()
    }
    # Those in float32 come first, so that each tensor begins at a multiple of its element's size.
    shapes = {f"{name}.output": value.shape for name, value in outputs.items()}
    for name, value in sums.items():
        shapes |= {f"{name}.mean": value.shape, f"{name}.rms": value.shape}
    dtypes = {name: torch.float32 if name.endswith(".output") else torch.bfloat16 for name in shapes}
    _log_size(shapes, dtypes)

    def add(name: str, weight: Tensor) -> None:
        gradient = weight.grad
        assert gradient is not None
        sums[name] += gradient
        squares[name].addcmul_(gradient, gradient)
        weight.grad = None

    def add_output(name: str, gradient: Tensor) -> None:
        outputs[name] += gradient.reshape(-1, gradient.shape[-1]).square().sum(0)

    def watch(name: str, output: Tensor) -> None:
        output.register_hook(lambda gradient: add_output(name, gradient))

    hooks = []
    for name, linear in linears.items():
        weight = linear.weight.requires_grad_()
        hooks.append(weight.register_post_accumulate_grad_hook(lambda weight, name=name: add(name, weight)))
        hooks.append(linear.register_forward_hook(lambda _, __, y, name=name: watch(name, y)))
    for window in tqdm(tokens.long().to(model.device), desc="gradients", unit="window", mininterval=5):
        logits = model(window[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, window[1:]).backward()
    for hook in hooks:
        hook.remove()
    model.requires_grad_(False)
    samples, length = tokens.shape
    with TensorFile(file, shapes, dtypes, {}) as stream:
        for name, total in outputs.items():
            # What flowed back was that of the mean over length - 1 predictions.
            stream.write([_finite(name, (total * ((length - 1) ** 2 / tokens.numel())).float())])
        for name in linears:
            stream.write([_finite(name, (sums.pop(name) / samples).bfloat16())])
            stream.write([_finite(name, (squares.pop(name) / samples).sqrt_().bfloat16())])


def measure_local(model: PreTrainedModel, tokens: Tensor, file: Path) -> None:
    """Write part ``local`` to ``file``.

    ``model`` in any dtype, no weight requiring a gradient; ``tokens`` int [samples, length].
    """
    from hemorrhage.models.blockwise import embed, in_float32
    from hemorrhage.models.blockwise import run_block as run

    linears = linears_of(model)
    shapes = {f"{name}.local": linear.weight.shape for name, linear in linears.items()}
    dtypes = dict.fromkeys(shapes, torch.bfloat16)
    _log_size(shapes, dtypes)
    with torch.no_grad():
        states, arguments = embed(model, tokens.long().to(model.device).split(1))
    with TensorFile(file, shapes, dtypes, {}) as stream:
        for block, keywords in zip(
            tqdm(blocks(model), desc="gradients", unit="block", mininterval=5), arguments, strict=True
        ):
            inside = set(block.modules())
            names = [name for name, linear in linears.items() if linear in inside]
            with in_float32(block):
                weights = [linears[name].weight.requires_grad_() for name in names]
                squares = [torch.zeros_like(weight) for weight in weights]
                for sample, before in enumerate(states):
                    after = run(block, before, keywords, sample)
                    # A layer that a window does not reach, an expert say, has no gradient.
                    of_window = torch.autograd.grad(after.norm(), weights, allow_unused=True)
                    for square, gradient in zip(squares, of_window, strict=True):
                        if gradient is not None:
                            square.addcmul_(gradient, gradient)
                    states[sample] = after.detach()
                block.requires_grad_(False)
            for name, square in zip(names, squares, strict=True):
                stream.write([_finite(name, (square / len(tokens)).sqrt_().bfloat16())])


def _log_size(shapes: Mapping[str, torch.Size], dtypes: Mapping[str, torch.dtype]) -> None:
    size = sum(shape.numel() * dtypes[name].itemsize for name, shape in shapes.items())
    log.info("%d tensors of gradients: %.1f MB", len(shapes), size / 1e6)


def _finite(name: str, values: Tensor) -> Tensor:
    """Return ``values`` on the processor. Raises ValueError where they are not finite."""
    if not values.isfinite().all():
        raise ValueError(f"{name}: its gradients are not finite")
    return values.cpu()


def main() -> None:
    """Entry point."""
    step.start()
    parser = argparse.ArgumentParser(
        prog="python -m hemorrhage.calibrate.gradients", description="gradients of the dense model"
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of a calibration set")
    parser.add_argument("--spec", type=json.loads, required=True, help='{"part": "loss"} or {"part": "local"}')
    arguments = parser.parse_args()
    gradients(arguments.out, arguments.base, arguments.calibration, arguments.spec)


if __name__ == "__main__":
    main()
