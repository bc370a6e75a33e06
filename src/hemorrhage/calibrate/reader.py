"""The statistics that methods read: from the calibrate step's files, or collected while a method goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from hemorrhage.calibrate import triangle
from hemorrhage.calibrate.statistics import Input, Seen, Walk, shared_inputs
from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Influence(TypedDict):
    """``influence.json`` of a calibration folder."""

    block_influence: list[float]
    angular_distance: list[list[float]]


class Statistics:
    """The statistics of a calibration folder, read on request: those of the dense base model."""

    def __init__(self, folder: Path, gradients: dict[str, Path] | None = None) -> None:
        """``folder`` is an output of the calibrate step, ``gradients`` part -> output of its gradients step."""
        self._folder = folder
        self._gradients = gradients or {}

    def tokens(self) -> Tensor:
        """Return the calibration windows: int64 [samples, length]."""
        return _tensor(self._folder / "tokens.safetensors", "tokens").long()

    def shared(self) -> dict[str, list[str]]:
        """Return ``{first linear: [linears]}``: the linear layers of the decoder blocks that read the same input."""
        from safetensors import safe_open

        with safe_open(self._folder / "hessian.safetensors", framework="pt") as file:
            shared: dict[str, list[str]] = json.loads(file.metadata()["shared"])
        return shared

    def second_moment(self, first: str, where: str = "cpu") -> Tensor:
        """Return the mean of x xᵀ over the calibration tokens for the input of linear ``first``.

        Float32 [n, n], on a device.
        """
        return triangle.square(_tensor(self._folder / "hessian.safetensors", first), where)

    def norms(self, first: str) -> Tensor:
        """Return the root mean square of every input feature of linear ``first``: float32 [n].

        Wanda's ``norm2(X_j)`` over the square root of the number of tokens, which changes no order.
        """
        return self._activation(f"{first}.rms")

    def mean(self, first: str) -> Tensor:
        """Return the mean of every input feature of linear ``first``: float32 [n]."""
        return self._activation(f"{first}.mean")

    def variance(self, first: str) -> Tensor:
        """Return the variance over all calibration tokens of every input feature of linear ``first``: float32 [n]."""
        return self._activation(f"{first}.variance")

    def mean_abs(self, first: str) -> Tensor:
        """Return the mean absolute value of every input feature of linear ``first``: float32 [n]."""
        return self._activation(f"{first}.mean_abs")

    def max_abs(self, first: str) -> Tensor:
        """Return the greatest absolute value of every input feature of linear ``first``: float32 [n]."""
        return self._activation(f"{first}.max_abs")

    def tokens_seen(self, first: str) -> float:
        """Return the calibration tokens that reached linear ``first``."""
        return self._activation(f"{first}.tokens").item()

    def second_moments_stored(self) -> bool:
        """Return whether second moments lie in the folder, and need not be collected anew."""
        return bool(read_manifest(self._folder).get("hessian_stored"))

    def input_range(self, first: str) -> tuple[float, float]:
        """Return the least (at most 0) and greatest (at least 0) value of the input of linear ``first``."""
        low, high = self._activation(f"{first}.range").tolist()
        return low, high

    def output_range(self, name: str) -> tuple[float, float]:
        """Return the least (at most 0) and greatest (at least 0) value that linear ``name`` gives."""
        low, high = self._activation(f"{name}.output_range").tolist()
        return low, high

    def block_influence(self) -> list[float]:
        """Return ShortGPT's influence of every decoder block."""
        return self._influence()["block_influence"]

    def angular_distance(self) -> Tensor:
        """Return the angle over π between the last tokens' states at two boundaries of blocks.

        Float64 [blocks + 1] twice.
        """
        return torch.tensor(self._influence()["angular_distance"], dtype=torch.float64)

    def gradient(self, name: str) -> Tensor:
        """Return the mean over windows of the gradient of the loss: float32, of the weight of ``name``."""
        return self._gradient("loss", f"{name}.mean")

    def gradient_rms(self, name: str) -> Tensor:
        """Return the root of the mean over windows of the squared gradient of each window's loss: float32."""
        return self._gradient("loss", f"{name}.rms")

    def output_gradient(self, name: str) -> Tensor:
        """Return mean over tokens of the squared gradient with respect to each output of ``name``: float32 [rows]."""
        return self._gradient("loss", f"{name}.output")

    def local_gradient(self, name: str) -> Tensor:
        """Return the root mean square over windows of the gradient of the norm of the block's output: float32."""
        return self._gradient("local", f"{name}.local")

    collected = False
    """Whether they are collected from the model while it is altered."""

    def see(self, index: int) -> None:
        """Take note of a block that is altered without asking for its statistics: these know them already."""

    def _activation(self, name: str) -> Tensor:
        return _tensor(self._folder / "activations.safetensors", name)

    def _influence(self) -> Influence:
        influence: Influence = json.loads((self._folder / "influence.json").read_text(encoding="utf-8"))
        return influence

    def _gradient(self, part: str, name: str) -> Tensor:
        return _tensor(self._gradients[part] / "gradients.safetensors", name).float()


class Streamed(Statistics):
    """Statistics of inputs that are collected block by block, when the first of a block is read.

    With ``propagated`` the windows go on through the blocks as they are by then, so that each block sees the errors
    of those before it (the sequential originals of GPTQ, SparseGPT and Wanda); else through the unaltered blocks, which
    gives the calibrate step's statistics without storing them.
    """

    def __init__(
        self,
        folder: Path,
        gradients: dict[str, Path] | None,
        model: PreTrainedModel,
        propagated: bool,
        second_moments: bool = True,
        aside: Path | None = None,
        where: torch.device | None = None,
    ) -> None:
        """``model`` is the one that is being altered; ``second_moments``: whether they will be read;
        ``aside``: where the windows' states lie if they are too many for memory; ``where``: the device that blocks
        compute on, and that second moments are on, if it is not the model's."""
        super().__init__(folder, gradients)
        self._aside, self._where = aside, where
        self._model = model
        self._second_moments = second_moments
        self._propagated = propagated
        with torch.inference_mode():
            self._shared = shared_inputs(model, self.tokens()[:1, :8])
        self._begin()
        inside = [set(block.modules()) for block in blocks(model)]
        self._block = {
            name: next(index for index, modules in enumerate(inside) if linear in modules)
            for name, linear in linears_of(model).items()
        }

    def _begin(self) -> None:
        self._seen: Seen | None = None
        with torch.inference_mode():
            self._walk = Walk(self._model, self.tokens(), self._shared, self._aside, self._where)

    collected = True

    def see(self, index: int) -> None:
        """Let the windows reach a block that is altered without asking for its statistics."""
        self._reach(index, second_moments=False)

    def shared(self) -> dict[str, list[str]]:
        """Return ``{first linear: [linears]}``, in the order of the blocks."""
        order = sorted(self._shared, key=lambda first: self._block[first])
        return {first: self._shared[first] for first in order}

    def second_moment(self, first: str, where: str = "cpu") -> Tensor:
        """Return the mean of x xᵀ over the calibration tokens for the input of linear ``first``.

        Float32 [n, n], on a device.
        """
        return self._input(first).second_moment().to(where)

    def _activation(self, name: str) -> Tensor:
        layer, _, statistic = name.rpartition(".")
        if statistic == "output_range":
            return self._seen_at(self._block[layer]).outputs[layer].cpu()
        return self._input(layer).activations()[statistic]

    def _input(self, first: str) -> Input:
        return self._seen_at(self._block[first]).inputs[first]

    def _seen_at(self, index: int) -> Seen:
        self._reach(index)
        assert self._seen is not None
        return self._seen

    def _reach(self, index: int, second_moments: bool = True) -> None:
        if index < self._walk.block:
            if self._propagated:
                raise ValueError(f"block {index} was passed; propagated statistics go forward only")
            # A method that looks at all blocks before it alters the first goes twice.
            self._begin()
        walk = self._walk
        with torch.inference_mode():
            while walk.block < index:
                if walk.block >= 0:
                    if self._propagated:
                        walk.leave()
                    else:
                        assert self._seen is not None
                        walk.states = self._seen.after
                # What one block saw leaves memory before another's is collected.
                self._seen = None
                self._seen = walk.advance(second_moments and self._second_moments)


def _tensor(file: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(name)
    return tensor
