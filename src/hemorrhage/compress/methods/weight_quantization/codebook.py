"""NF4 and FP4 (QLoRA, Dettmers et al., arXiv 2305.14314): round to the nearest value of a table of 16.

The table is laid over each block of weights by their largest magnitude, the absmax. NF4's values are
quantiles of the normal distribution, FP4's those of a floating-point number of 4 bits. With double
quantization the absmax values are coded too, in 8 bits: less their mean, in blocks of 256, by the table of
dynamic exponents (Dettmers, arXiv 1511.04561) that bitsandbytes uses. Codes and absmax are those of
bitsandbytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tqdm import tqdm

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

NESTED = 256
"""Absmax values of a block of double quantization."""

LEAST = 1e-38
"""A block of zeros is divided by this."""


class Settings(Base):
    """The table, the weights that share an absmax, and whether the absmax values are quantized too.

    All have 4 bits, so none is the severity's: each is a point of its own.
    """

    axis: ClassVar[str] = "bits"
    words: ClassVar[Mapping[str, Wording]] = {"type": str.upper, "block_size": "blocks of {}"}
    always_named: ClassVar[tuple[str, ...]] = ("type", "block_size")

    type: Literal["nf4", "fp4"] = "nf4"
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64
    double: bool = False

    @property
    def severity(self) -> float:
        """Bits of a code; the absmax values are counted in the manifest's effective bits."""
        return 4.0


def alter(model: PreTrainedModel, settings: Settings, _context: Context) -> None:
    """Quantize ``model`` in place; its ``config.quantization_config`` is what bitsandbytes reads."""
    from hemorrhage.models.formats.codebook import CodebookLinear
    from hemorrhage.models.formats.storage import replace

    dtype = model.dtype
    for name, linear in tqdm(linears_of(model).items(), desc="codebook", unit="layer", mininterval=5, leave=False):
        with torch.no_grad():
            stored = quantize(linear.weight, settings)
        replace(model, name, CodebookLinear(stored, linear.bias))
    model.config.quantization_config = configuration(
        settings,
        dtype,
        [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)],
    )


def quantize(weight: Tensor, settings: Settings) -> dict[str, Tensor]:
    """Return the tensors of hemorrhage.models.formats.codebook, by suffix, for ``weight`` [rows, columns]."""
    from hemorrhage.models.formats.codebook import STATE, TABLES, QuantState

    table = torch.tensor(TABLES[settings.type])
    codes, absmax = nearest(weight.float().flatten(), table, settings.block_size)
    if len(codes) % 2:
        codes = torch.cat([codes, nearest_codes(torch.zeros(1), table)])
    state = QuantState(
        quant_type=settings.type,
        blocksize=settings.block_size,
        dtype=str(weight.dtype).removeprefix("torch."),
        shape=list(weight.shape),
    )
    stored = {"weight": ((codes[::2] << 4) | codes[1::2]).unsqueeze(1), "weight.quant_map": table}
    if settings.double:
        mean = absmax.mean()
        dynamic = dynamic_table()
        stored["weight.absmax"], stored["weight.nested_absmax"] = nearest(absmax - mean, dynamic, NESTED)
        stored["weight.nested_quant_map"] = dynamic
        state |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": mean.item()}
    else:
        stored["weight.absmax"] = absmax
    text = json.dumps(state).encode()
    return {**stored, f"{STATE}{settings.type}": torch.tensor(list(text), dtype=torch.uint8)}


def nearest(values: Tensor, table: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the codes uint8 of ``values`` float32 [n] in ``table``, and each block's absmax float32."""
    missing = -len(values) % width
    blocks = torch.nn.functional.pad(values, (0, missing)).view(-1, width)
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1 / absmax.clamp(min=LEAST)).unsqueeze(1)).clamp_(-1, 1)
    return nearest_codes(scaled.flatten()[: len(values)], table), absmax


def nearest_codes(values: Tensor, table: Tensor) -> Tensor:
    """Return the places uint8 in ``table`` of the entries nearest to ``values``; of two as near, the lower entry's."""
    ordered, order = table.sort(stable=True)
    bounds = (ordered[:-1] + ordered[1:]) / 2
    return order.to(torch.uint8)[torch.bucketize(values, bounds)]


def dynamic_table() -> Tensor:
    """Return the signed dynamic table of 8 bits of bitsandbytes: float32 [256], ascending.

    For each exponent ``e`` of 0 to -6 the middles of ``2^(6+e)`` equal parts of [0.1, 1], times ``10^e``,
    with both signs; 0 and 1.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = (10.0 ** (exponent - 6)) * ((bounds[:-1] + bounds[1:]) / 2)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values))


def configuration(settings: Settings, dtype: torch.dtype, plain: list[str]) -> dict[str, Any]:
    """Return the ``quantization_config`` for transformers; ``plain``: linear layers left as they are."""
    name = str(dtype).removeprefix("torch.")
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": settings.type,
        "bnb_4bit_use_double_quant": settings.double,
        "bnb_4bit_compute_dtype": name,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": plain,
    }


METHOD = Method(
    MethodInfo(
        title="NF4 and FP4 (QLoRA)",
        summary="the nearest value of a table of 16, stored as bitsandbytes does",
        papers=(Paper("Dettmers et al.", "2305.14314"),),
        examples=({"type": "nf4"}, {"type": "fp4", "double": True}),
        storage=("codebook",),
    ),
    Settings,
    alter,
)
