"""QuaRot's rotations alone (Ashkboos et al., arXiv 2404.00456), for methods that round the rotated model.

The norms' weights go into the layers behind them, R1 turns the residual stream, R2 each head between the layer that
makes its values and the one that reads them, by random Hadamard matrices that are multiplied into the weights: see
hemorrhage.compress.methods.weight_quantization.rotation, which rounds after the same. The model computes what it did,
but for the rounding of its weights to their dtype. A method on it reads the inputs of the rotated model: GPTQ with
``format: nvfp4, inputs: nvfp4`` on it is W4A4 whose inputs have no outliers, those of the layers that write the
residual stream excepted: R3 and R4, which would turn these while the model runs, are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.methods.weight_quantization.rotation import plan_turns, turn_stream
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hemorrhage.compress.checks.fidelity import EquivalentTransform


class Settings(Base):
    """A rotation has no settings; its matrices are drawn by the seed."""

    axis: ClassVar[str] = "transform"

    @property
    def severity(self) -> float:
        """The whole of the residual stream is turned."""
        return 1.0

    @property
    def label(self) -> str:
        """The variant for people."""
        return "R1 and R2"

    @property
    def equivalent_transform(self) -> EquivalentTransform:
        """The residual stream is in another basis."""
        return "rotated"

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where the residual stream can't be turned."""
        plan_turns(model, 0)
        return None


def alter(model: PreTrainedModel, _settings: Settings, context: Context) -> None:
    """Rotate ``model`` in place."""
    with torch.no_grad():
        turn_stream(model, plan_turns(model, context.seed), ())


METHOD = Method(
    MethodInfo(
        title="Hadamard rotation (QuaRot) without rounding",
        summary="the residual stream and the heads' values are turned; for methods that round the model after it",
        papers=(Paper("Ashkboos et al.", "2404.00456"),),
        unchanged=True,
    ),
    Settings,
    alter,
)
