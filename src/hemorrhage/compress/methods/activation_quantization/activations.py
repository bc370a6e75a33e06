"""Quantized activations: the linear layers of the decoder blocks read rounded inputs with rounded weights.

W8A8 and W4A8 as engines run them: symmetric weights, rounded to nearest, a scale for each row or group;
inputs of 8 bits with one scale that was fixed by calibration (``static``), one for the tensor that arrives
(``tensor``), or one for each token (``token``), as SmoothQuant (Xiao et al., arXiv 2211.10438) and ZeroQuant
(Yao et al., arXiv 2206.01861) compare them. ``smooth`` is SmoothQuant's alpha, folded into the norms before
the layers; inputs that come from no norm stay as they are. The grid of an input reaches from -max|x| to
max|x|. What a loaded model does with its inputs is in hemorrhage.models.emulation.activations: integer arithmetic
is emulated. ``shuffled`` is the control of smoothing: the scales of an input are shuffled among its features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from tqdm import tqdm

from hemorrhage.compress.info import SCALES, Comparison, MethodInfo, Paper, Spacing
from hemorrhage.compress.method import ConfigJson, Context, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.methods.weight_quantization.rtn import quantize
from hemorrhage.compress.solvers import smoothing
from hemorrhage.compress.solvers.grid import GridSettings, group_width, grouping
from hemorrhage.compress.solvers.packing import RoundedInputs, store
from hemorrhage.compress.solvers.readers import find_norm_readers
from hemorrhage.compress.solvers.shuffle import shuffler
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.compress.checks.fidelity import EquivalentTransform

NAMES = {"static": "static inputs", "tensor": "inputs per tensor", "token": "inputs per token"}


class Settings(Base):
    """Bits and scales of weights and inputs."""

    axis: ClassVar[str] = "activation_bits"
    severity_field: ClassVar[str] = "activation_bits"
    words: ClassVar[Mapping[str, Wording]] = {
        "bits": "{} bit weights",
        "group_size": grouping,
        "activations": NAMES,
        "smooth": "smoothed {}",
    }
    always_named: ClassVar[tuple[str, ...]] = ("bits", "group_size", "activations")

    bits: Literal[4, 8] = 8
    group_size: Annotated[int, Field(ge=2, strict=True)] | Literal["channel"] = "channel"
    activation_bits: Annotated[int, Field(ge=4, le=8, strict=True)] = 8
    activations: Literal["static", "tensor", "token"] = "token"
    smooth: Annotated[float, Field(ge=0, le=1)] | None = None
    shuffled: bool = False

    @model_validator(mode="after")
    def _scales_to_shuffle(self) -> Settings:
        if self.shuffled and self.smooth is None:
            raise ValueError("shuffled: the scales of smoothing are what is shuffled, and there is no smooth")
        return self

    @property
    def equivalent_transform(self) -> EquivalentTransform:
        """Smoothing scales columns of weights against the norms before them."""
        return "" if self.smooth is None else "scaled"

    @property
    def grid(self) -> GridSettings:
        """The weights' grid."""
        return GridSettings(bits=self.bits, group_size=self.group_size, symmetric=True)

    @property
    def label(self) -> str:
        """The variant in the words of its field: W8A8 and so on."""
        return f"W{self.bits}A{self.activation_bits}, {self.curve}"

    @property
    def theoretical(self) -> str:
        """Speed: the integer arithmetic is emulated."""
        return "speed: the integer arithmetic of quantized inputs is emulated in floating point"

    @property
    def code_bits(self) -> float:
        """Bits of a weight's code."""
        return float(self.bits)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The inputs' ranges, where scales are fixed or inputs are smoothed."""
        return () if self.activations != "static" and self.smooth is None else ("activations",)

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        return self.grid.check(config)

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where groups don't divide a layer's inputs, or a norm takes no factors."""
        self.grid.check_model(model)
        if self.smooth is not None:
            from hemorrhage.calibrate.statistics import shared_inputs

            find_norm_readers(model, shared_inputs(model, torch.ones(1, 1)))
        return None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Quantize ``model`` in place: its weights, and the inputs of its layers whenever it computes."""
    from hemorrhage.models.emulation.activations import InputRounding, quantization_args, scale_of

    linears = linears_of(model)
    statistics, generator = context.statistics, shuffler(settings.shuffled, context.seed)
    inputs = {name: [name] for name in linears} if statistics is None else statistics.shared()
    norms = [] if settings.smooth is None else find_norm_readers(model, inputs)
    norm_of = {first: readers for readers in norms for first in readers.inputs}
    factors: dict[str, Tensor] = {}
    with torch.no_grad():
        for first, names in tqdm(inputs.items(), desc="activations", unit="input", mininterval=5, leave=False):
            largest = None if statistics is None else statistics.max_abs(first).to(model.device)
            factor: Tensor | float = 1.0
            if largest is not None and settings.smooth is not None and first in norm_of:
                readers = norm_of[first]
                if readers.norm not in factors:
                    ranges = [context.calibration.max_abs(each) for each in readers.inputs]
                    factors[readers.norm] = smoothing.smooth(model, readers, ranges, settings.smooth, generator)
                factor = factors[readers.norm]
                largest = largest / factor
            rounded = RoundedInputs(
                quantization_args(InputRounding(settings.activation_bits, settings.activations)), {}
            )
            if settings.activations == "static" and largest is not None:
                # Rounded to what the checkpoint can hold before it is used.
                fixed = scale_of(largest.amax(), settings.activation_bits).to(linears[first].weight.dtype)
                rounded = RoundedInputs(rounded.arguments, {"input_scale": fixed.reshape(1)})
            for name in names:
                weight = linears[name].weight
                width = group_width(name, weight.shape[1], settings.grid)
                quantized = quantize(weight.float() * factor, width, settings.grid, weight.dtype)
                store(model, name, quantized, settings.grid, rounded)


METHOD = Method(
    MethodInfo(
        title="Quantized activations (W8A8, W4A8, SmoothQuant)",
        summary="inputs rounded with static scales, per tensor or per token; SmoothQuant with `smooth`",
        papers=(Paper("Xiao et al.", "2211.10438"), Paper("Yao et al.", "2206.01861")),
        examples=({"bits": 8, "activations": "token", "smooth": 0.5}, {"bits": 4, "activations": "static"}),
        storage=("int8", "packed"),
        improves_on=(
            Comparison(
                SCALES,
                "activations",
                ("bits", "group_size", "activation_bits", "smooth"),
                untreated={"activations": ("static",)},
                changed=("activations",),
            ),
            Comparison(
                SCALES,
                "activations",
                ("bits", "group_size", "activation_bits", "activations"),
                untreated={"smooth": (None,)},
                changed=("smooth",),
            ),
        ),
        values=Spacing(4, 8, 1, whole=True),
    ),
    Settings,
    alter,
)
