"""SmoothQuant's smoothing alone (Xiao et al., arXiv 2211.10438), for methods that round the smoothed model.

``alpha`` shares an input's range between the input and the weights that read it: see hemorrhage.compress.solvers.
smoothing. The model computes what it did, but for the rounding of its weights to their dtype. A method on it reads the
inputs of the smoothed model: GPTQ with ``inputs: int8_token`` on smoothing of 0.8 is llm-compressor's recipe for W8A8.

``shuffled`` is the control: the scales of an input are shuffled among its features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from tqdm import tqdm

from hemorrhage.compress.info import MethodInfo, Paper, Spacing
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers import smoothing
from hemorrhage.compress.solvers.readers import find_norm_readers
from hemorrhage.compress.solvers.shuffle import shuffler
from hemorrhage.models.linears import linears_of
from hemorrhage.models.stream import rows_at_once
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hemorrhage.compress.checks.fidelity import EquivalentTransform


class Settings(Base):
    """How much of the inputs' ranges moves into the weights; llm-compressor's default is 0.5, its W8A8 has 0.8."""

    axis: ClassVar[str] = "transform"
    severity_field: ClassVar[str] = "alpha"
    words: ClassVar[Mapping[str, Wording]] = {"alpha": "smoothed {}"}

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    shuffled: bool = False

    @property
    def equivalent_transform(self) -> EquivalentTransform:
        """Columns of weights are scaled against the norms before them."""
        return "scaled"

    @property
    def statistics(self) -> tuple[str, ...]:
        """The inputs' ranges."""
        return ("activations",)

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where a norm takes no factors."""
        from hemorrhage.calibrate.statistics import shared_inputs

        find_norm_readers(model, shared_inputs(model, torch.ones(1, 1)))
        return None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Smooth ``model`` in place."""
    linears, statistics = linears_of(model), context.calibration
    generator = shuffler(settings.shuffled, context.seed)
    norms = find_norm_readers(model, statistics.shared())
    with torch.no_grad():
        for readers in tqdm(norms, desc="smoothing", unit="norm", mininterval=5, leave=False):
            ranges = [statistics.max_abs(first) for first in readers.inputs]
            factor = smoothing.smooth(model, readers, ranges, settings.alpha, generator)
            for name in readers.linears:
                weight = linears[name].weight
                for rows in weight.split(rows_at_once(weight.shape[1])):
                    rows.copy_(rows.float() * factor)


METHOD = Method(
    MethodInfo(
        title="Smoothing (SmoothQuant) without rounding",
        summary="ranges of inputs move into the weights; for methods that round the model after it",
        papers=(Paper("Xiao et al.", "2211.10438"),),
        examples=({"alpha": 0.8}, {"alpha": 0.8, "shuffled": True}),
        values=Spacing(0, 1, 0.1),
        unchanged=True,
    ),
    Settings,
    alter,
)
