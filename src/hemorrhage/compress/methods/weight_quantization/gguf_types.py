"""The block types of GGUF files (ggml, llama.cpp): Q8_0 and the k-quants Q6_K ... Q2_K.

All linear layers of the blocks get the same type; llama.cpp's named mixes (Q4_K_M and so on) give some of
them a better one. Super-blocks of 256 must divide a row: where they do not, a tensor falls back as in
llama.cpp to a type with blocks of 32 (Q2_K and Q3_K to Q4_0, where llama.cpp has the newer IQ4_NL; Q4_K to
Q5_0, Q5_K to Q5_1, Q6_K to Q8_0), and stays as it is where 32 does not divide it either. How many fell back
is in the manifest. Embeddings stay as they are unless ``embeddings`` asks for them: then the output matrix,
which is the embedding where both are tied, becomes Q6_K (Q8_0 for Q8_0) and an untied embedding gets the type
itself, as in llama.cpp's mixes. ``importance`` weights the error with the mean square of each input,
llama.cpp's imatrix. The search is hemorrhage.compress.solvers.kquants; the checkpoint's weights are in a model.gguf
(hemorrhage.models.formats.gguf_file).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tqdm import tqdm

from hemorrhage.compress.info import MethodInfo
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Json, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.kquants import WIDTHS, quantize
from hemorrhage.compress.solvers.widths import input_widths
from hemorrhage.models.formats.gguf_names import problem
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BITS = {"q8_0": 8.5, "q6_k": 6.5625, "q5_k": 5.5, "q4_k": 4.5, "q3_k": 3.4375, "q2_k": 2.625}
"""Type -> bits per weight, scales included."""

FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""Type -> the type of a tensor whose rows its super-blocks do not divide."""


class Settings(Base):
    """The type, and whether embeddings get one and importances are used."""

    axis: ClassVar[str] = "bits"
    severity_field: ClassVar[str] = "type"
    words: ClassVar[Mapping[str, Wording]] = {"type": str.upper}

    type: Literal["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"]
    importance: bool = False
    embeddings: bool = False

    @property
    def severity(self) -> float:
        """The type's bits per weight; the manifest's effective bits count what fell back."""
        return BITS[self.type]

    @property
    def statistics(self) -> tuple[str, ...]:
        """The norms of the layers' inputs, with ``importance``."""
        return ("hessian",) if self.importance else ()

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        reason = problem(config)
        if reason:
            return reason
        widths = input_widths(config)
        if all(type_of(self.type, width) is None for width in widths.values()):
            return (
                f"no layer's rows are whole blocks of {self.type} ({', '.join(f'{k} {v}' for k, v in widths.items())})"
            )
        return None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Quantize ``model`` in place; it becomes one that is stored as a GGUF file."""
    from hemorrhage.models.architecture import entries
    from hemorrhage.models.formats.gguf_file import BlockLinear, embed
    from hemorrhage.models.formats.storage import replace

    reason = problem(entries(model.config))
    if reason:
        raise ValueError(reason)
    norms = _norms(settings, context)
    for name, linear in tqdm(linears_of(model).items(), desc=settings.type, unit="layer", mininterval=5, leave=False):
        ggml_type = type_of(settings.type, linear.in_features)
        if ggml_type is not None:
            importance = norms[name]().square() if name in norms else None
            replace(
                model, name, BlockLinear(_blocks(name, linear.weight, ggml_type, importance), ggml_type, linear.bias)
            )
    for module, wanted in _embeddings(model, settings):
        ggml_type = type_of(wanted, module.weight.shape[1])
        if ggml_type is not None:
            embed(module, _blocks("the embedding", module.weight, ggml_type, None), ggml_type)
    model.config.hemorrhage = {"form": "gguf_file", "type": settings.type}
    return Alteration(entries=tensor_types(model, settings))


def tensor_types(model: PreTrainedModel, settings: Settings) -> Mapping[str, Json]:
    """Count the types of the blocks' linear layers, for the manifest.

    ``types``: tensors by type; ``fell_back``: tensors without the requested type; ``layer_bits``: stored bits per
    weight.
    """
    from hemorrhage.models.blocks import blocks
    from hemorrhage.models.formats.gguf_file import BlockLinear, block_size

    types: Counter[str] = Counter()
    bits = weights = 0.0
    for module in blocks(model).modules():
        if isinstance(module, BlockLinear):
            width, size = block_size(module.ggml_type)
            types[module.ggml_type] += 1
            bits += 8 * size / width * module.parameters_count
            weights += module.parameters_count
        elif isinstance(module, torch.nn.Linear):
            types["plain"] += 1
            bits += 8 * module.weight.element_size() * module.weight.numel()
            weights += module.weight.numel()
    fell = sum(number for ggml_type, number in types.items() if ggml_type != settings.type)
    return {"types": dict(types), "fell_back": fell, "layer_bits": bits / weights}


def type_of(wanted: str, columns: int) -> str | None:
    """Return the type that rows of ``columns`` weights get for ``wanted``; None: they stay as they are."""
    for ggml_type in (wanted, FALLBACK.get(wanted)):
        if ggml_type is not None and columns % WIDTHS[ggml_type] == 0:
            return ggml_type
    return None


def _blocks(name: str, weight: Tensor, ggml_type: str, importance: Tensor | None) -> Tensor:
    with torch.no_grad():
        rows = quantize(weight.float(), ggml_type, importance)
    # A layer of one value stays so.
    if (rows == rows[0, 0]).all() and weight.any():
        raise ValueError(f"{name}: all bytes of the blocks are the same")
    return rows


def _norms(settings: Settings, context: Context) -> dict[str, Callable[[], Tensor]]:
    """Return ``{layer: function that gives the root mean square of its inputs}``."""
    if not settings.importance:
        return {}
    statistics = context.calibration
    return {name: partial(statistics.norms, first) for first, shared in statistics.shared().items() for name in shared}


def _embeddings(model: PreTrainedModel, settings: Settings) -> list[tuple[Any, str]]:
    """Return the embedding modules to quantize, and the type each is to get."""
    if not settings.embeddings:
        return []
    output = "q8_0" if settings.type == "q8_0" else "q6_k"
    into, out = model.get_input_embeddings(), model.get_output_embeddings()
    if model.config.tie_word_embeddings:
        return [(into, output)]
    return [(into, settings.type), (out, output)]


METHOD = Method(
    MethodInfo(
        title="GGUF block types (llama.cpp)",
        summary="Q8_0, Q6_K, Q5_K, Q4_K, Q3_K, Q2_K; fallbacks counted; for some 40 families",
        examples=({"type": "q4_k"}, {"type": "q4_k", "importance": True}),
        storage=("gguf_file",),
    ),
    Settings,
    alter,
)
