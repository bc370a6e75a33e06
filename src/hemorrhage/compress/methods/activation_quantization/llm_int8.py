"""LLM.int8 (Dettmers et al., arXiv 2208.07339): 8 bits for weights and inputs, but for the columns of outliers.

A column of a layer's input that reaches ``threshold`` is an outlier: it and its column of weights stay as they are, in
16 bits. All others are rounded to 8 bits, each row of weights and each token's input by its own largest value (vector-
wise): ``q = round(127 w / max|w|)``. A threshold of None leaves out no column.

In bitsandbytes columns are found anew in every batch, so what is computed together changes the result. Here they are
those that reach the threshold on the calibration set, and are stored: a reader of the checkpoint sees one model. Inputs
of layers are emulated (hemorrhage.models.emulation.activations).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hemorrhage.compress.info import SCALES, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Alteration, Context, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.progress import remaining
from hemorrhage.models.linears import linears_of
from hemorrhage.models.stream import rows_at_once
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LARGEST = 127
"""Code of a row's or token's largest value."""


class Settings(Base):
    """The size from which a column is an outlier. All have 8 bits, so each is a point of its own."""

    axis: ClassVar[str] = "activation_bits"
    words: ClassVar[Mapping[str, Wording]] = {"threshold": {None: "no outlier columns"}}
    always_named: ClassVar[tuple[str, ...]] = ("threshold",)

    threshold: Annotated[float, Field(gt=0)] | None = 6.0

    @property
    def severity(self) -> float:
        """Bits of a code of inputs; columns of 16 bits are counted in the manifest's effective bits."""
        return 8.0

    @property
    def code_bits(self) -> float:
        """Bits of a code of weights."""
        return 8.0

    @property
    def statistics(self) -> tuple[str, ...]:
        """The largest values of the layers' inputs, if any counts."""
        return () if self.threshold is None else ("activations",)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Quantize ``model`` in place. Reports how many columns of each input stay in 16 bits."""
    from hemorrhage.models.emulation.install import round_inputs
    from hemorrhage.models.formats.int8_outliers import Int8OutlierLinear
    from hemorrhage.models.formats.storage import replace

    linears, statistics = linears_of(model), context.statistics
    shared = {name: [name] for name in linears} if settings.threshold is None else context.calibration.shared()
    outliers: dict[str, int] = {}
    with torch.no_grad():
        for first, names in remaining(model, shared, context.progress, statistics):
            columns = torch.empty(0, dtype=torch.long)
            if settings.threshold is not None:
                columns = (context.calibration.max_abs(first) >= settings.threshold).nonzero()[:, 0].cpu()
            outliers[first] = len(columns)
            for name in names:
                linear = linears[name]
                layer = Int8OutlierLinear(quantize(linear.weight, columns), linear.bias)
                replace(model, name, layer)
                round_inputs(name, layer)
                # Whoever still holds the layer needs its own weights no more.
                linear.weight.data = linear.weight.data.new_empty(0)
    return Alteration(entries={"outlier_columns": outliers})


def quantize(weight: Tensor, outliers: Tensor) -> dict[str, Tensor]:
    """Return the tensors of hemorrhage.models.formats.int8_outliers for ``weight`` [rows, columns], by suffix.

    ``outliers``: int64 [k], the columns that stay.
    """
    pieces = [_codes(rows, outliers) for rows in weight.split(rows_at_once(weight.shape[1]))]
    codes, scale = (torch.cat(each) for each in zip(*pieces, strict=True))
    kept = weight[:, outliers].contiguous()
    return {"outlier_codes": codes, "outlier_scale": scale, "input_spared": outliers, "outlier_weight": kept}


def _codes(weight: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
    W = weight.float().index_fill(1, outliers, 0)
    scale = W.abs().amax(1) / LARGEST
    # Rows of zeros read back as zeros by any scale.
    scale = torch.where(scale == 0, 1, scale)
    return (W / scale.unsqueeze(1)).round_().to(torch.int8), scale


METHOD = Method(
    MethodInfo(
        title="LLM.int8",
        summary="8 bits for weights and inputs, 16 for columns whose inputs reach a threshold",
        papers=(Paper("Dettmers et al.", "2208.07339"),),
        examples=({"threshold": 6.0}, {"threshold": None}),
        storage=("int8_outliers",),
        improves_on=(Comparison(SCALES, "llm_int8", untreated={"threshold": (None,)}, changed=("threshold",)),),
    ),
    Settings,
    alter,
)
