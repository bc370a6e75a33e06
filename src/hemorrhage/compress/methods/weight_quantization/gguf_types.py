"""The block types of GGUF files (ggml, llama.cpp), one for all layers or mixed as llama.cpp mixes them.

A type alone, such as ``q4_k``, is given to all linear layers of the blocks. A mix, such as ``q4_k_m``, is what
llama.cpp calls a file: some tensors get a better type, and so do embeddings and the head
(hemorrhage.models.formats.gguf_mixes). Names that are both, such as ``q2_k``, are a type unless ``mix`` asks for
llama.cpp's file of that name. Super-blocks of 256 must divide a row: where they do not, a tensor falls back as in
llama.cpp to a type with blocks of 32 (Q2_K, Q3_K and the ternary types to Q4_0, IQ4_XS to IQ4_NL, Q4_K to Q5_0, Q5_K to
Q5_1, Q6_K to Q8_0), and stays as it is where 32 does not divide it either. How many fell back is in the manifest.
With a type alone embeddings stay as they are unless ``embeddings`` asks for them: then the output matrix, which is the
embedding where both are tied, becomes Q6_K (Q8_0 for Q8_0) and an untied embedding gets the type itself.
``importance`` weights the error with the mean square of each input, llama.cpp's imatrix, of the study's calibration;
``imatrix`` names a file of llama.cpp that has them. TQ1_0 and TQ2_0 round to three
values, and are of use for models that were trained so. The searches are those of hemorrhage.compress.solvers.kquants;
the checkpoint's weights are in a model.gguf (hemorrhage.models.formats.gguf_file).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator
from tqdm import tqdm

from hemorrhage.compress.info import MethodInfo
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Json, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.kquants import WIDTHS, quantize
from hemorrhage.compress.solvers.widths import input_widths
from hemorrhage.models.engines import EXPERTS
from hemorrhage.models.formats.gguf_mixes import MIXES, mix_types
from hemorrhage.models.formats.gguf_names import problem
from hemorrhage.models.formats.imatrix import of_another_model
from hemorrhage.models.formats.imatrix import problem as importance_problem
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BITS = {
    "q8_0": 8.5,
    "q6_k": 6.5625,
    "q5_k": 5.5,
    "q5_1": 6.0,
    "q5_0": 5.5,
    "q4_k": 4.5,
    "q4_1": 5.0,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
    "iq4_xs": 4.25,
    "mxfp4": 4.25,
    "q3_k": 3.4375,
    "q2_k": 2.625,
    "tq2_0": 2.0625,
    "tq1_0": 1.6875,
}
"""Type -> bits per weight, scales included."""

MIX_BITS = {
    "q8_0": 8.5,
    "q6_k": 6.56,
    "q5_k_m": 5.7,
    "q5_k_s": 5.57,
    "q5_1": 6.04,
    "q5_0": 5.57,
    "q4_k_m": 4.89,
    "q4_k_s": 4.67,
    "q4_1": 5.1,
    "q4_0": 4.63,
    "iq4_nl": 4.68,
    "iq4_xs": 4.46,
    "mxfp4_moe": 4.25,
    "q3_k_l": 4.3,
    "q3_k_m": 3.99,
    "q3_k_s": 3.64,
    "q2_k": 3.16,
    "tq2_0": 2.52,
    "tq1_0": 2.19,
}
"""Mix -> bits per weight of Llama 3.1 8B, embeddings and head included; of MXFP4 those of the experts."""

KINDS = {
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1"), "legacy types"),
    **dict.fromkeys(("iq4_nl", "iq4_xs"), "IQ types"),
    **dict.fromkeys(("mxfp4", "mxfp4_moe"), "MXFP4"),
    **dict.fromkeys(("tq1_0", "tq2_0"), "ternary types"),
}
"""Types and mixes that are no K types: as many bits of theirs are another point of another curve."""

Name = Literal[
    "q8_0",
    "q6_k",
    "q5_k",
    "q5_k_m",
    "q5_k_s",
    "q5_1",
    "q5_0",
    "q4_k",
    "q4_k_m",
    "q4_k_s",
    "q4_1",
    "q4_0",
    "iq4_nl",
    "iq4_xs",
    "mxfp4",
    "mxfp4_moe",
    "q3_k",
    "q3_k_l",
    "q3_k_m",
    "q3_k_s",
    "q2_k",
    "tq2_0",
    "tq1_0",
]

FALLBACK = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "iq4_xs": "iq4_nl",
    "tq1_0": "q4_0",
    "tq2_0": "q4_0",
}
"""Type -> the type of a tensor whose rows its super-blocks do not divide."""


class Settings(Base):
    """The type or mix, and whether embeddings get a type and importances are used."""

    axis: ClassVar[str] = "bits"
    severity_field: ClassVar[str] = "type"
    words: ClassVar[Mapping[str, Wording]] = {
        "type": str.upper,
        "mix": "llama.cpp's mix",
        "imatrix": lambda path: f"importances of {Path(path).name}",
    }
    in_names: ClassVar[Mapping[str, Callable[[object], str]]] = {"imatrix": lambda path: Path(str(path)).stem}
    paths: ClassVar[tuple[str, ...]] = ("imatrix",)
    no_pattern: ClassVar[str] = "K types"

    type: Name
    mix: bool = False
    importance: bool = False
    imatrix: str | None = None
    embeddings: bool = False

    @classmethod
    def refusal(cls, path: Path) -> str | None:
        """Return why an importance matrix can't be read, in one line, or None."""
        if path.suffix not in (".gguf", ".dat"):
            return f"{path} is no importance matrix of llama.cpp; these are called .gguf or .dat"
        return importance_problem(path) if path.is_file() else f"{path} is missing"

    @model_validator(mode="before")
    @classmethod
    def _name_of_a_mix(cls, content: Any) -> Any:
        """Set ``mix`` where the name is that of a mix alone."""
        if isinstance(content, dict) and content.get("type") in MIX_BITS.keys() - BITS.keys():
            return {"mix": True, **content}
        return content

    @model_validator(mode="after")
    def _types_and_mixes(self) -> Self:
        if self.mix and self.type not in MIX_BITS:
            raise ValueError(f"mix: llama.cpp calls no file {self.type}; mixes are {', '.join(MIX_BITS)}")
        if not self.mix and self.type not in BITS:
            raise ValueError(f"mix: {self.type} is a mix of types, and no type; types are {', '.join(BITS)}")
        if self.importance and self.imatrix is not None:
            raise ValueError("imatrix: importances are those of a file or, with importance, of the calibration")
        if self.mix and self.embeddings:
            raise ValueError("embeddings: a mix has them quantized; leave this out")
        return self

    @property
    def severity(self) -> float:
        """The type's bits per weight; the manifest's effective bits count what fell back."""
        return MIX_BITS[self.type] if self.mix else BITS[self.type]

    @property
    def severity_pattern(self) -> str:
        """The kind of types; nothing for K types, and for Q8_0, whose mixes hold it."""
        return KINDS.get(self.type, "")

    @property
    def statistics(self) -> tuple[str, ...]:
        """The norms of the layers' inputs, with ``importance``."""
        return ("hessian",) if self.importance else ()

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        reason = problem(config)
        if reason:
            return reason
        if self.type == "mxfp4_moe" and not any(config.get(key) for key in EXPERTS):
            return "mxfp4_moe is a mix of MXFP4 experts, and this model has no experts"
        widths = input_widths(config)
        usual = MIXES[self.type] if self.mix else self.type
        if all(type_of(usual, width) is None for width in widths.values()):
            return (
                f"no layer's rows are whole blocks of {self.type} ({', '.join(f'{k} {v}' for k, v in widths.items())})"
            )
        if self.imatrix is not None:
            return of_another_model(Path(self.imatrix), config["num_hidden_layers"], config["hidden_size"])
        return None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Quantize ``model`` in place; it becomes one that is stored as a GGUF file."""
    from hemorrhage.models.architecture import entries
    from hemorrhage.models.formats.gguf_file import BlockLinear, embed
    from hemorrhage.models.formats.storage import replace

    reason = problem(entries(model.config))
    if reason:
        raise ValueError(reason)
    squares, wanted = _squares(model, settings, context), wanted_types(model, settings)
    for name, linear in tqdm(linears_of(model).items(), desc=settings.type, unit="layer", mininterval=5, leave=False):
        ggml_type = type_of(wanted.get(name), linear.in_features)
        if ggml_type is not None:
            importance = squares[name]() if name in squares else None
            replace(
                model, name, BlockLinear(_blocks(name, linear.weight, ggml_type, importance), ggml_type, linear.bias)
            )
    for module, name in _embeddings(model):
        ggml_type = type_of(wanted.get(name), module.weight.shape[1])
        if ggml_type is not None:
            importance = squares[name]() if name in squares else None
            embed(module, _blocks(name, module.weight, ggml_type, importance), ggml_type)
    model.config.hemorrhage = {"form": "gguf_file", "type": settings.type}
    return Alteration(entries=tensor_types(model, settings, wanted))


def wanted_types(model: PreTrainedModel, settings: Settings) -> dict[str, str]:
    """Return the type that each linear layer of the blocks is to get, the embedding, and the head if it is apart.

    By the names of modules. Whether the type's blocks divide the rows is not asked.
    """
    if settings.mix:
        return _mixed(model, settings)
    types: dict[str, str] = dict.fromkeys(linears_of(model), settings.type)
    if settings.embeddings:
        output = "q8_0" if settings.type == "q8_0" else "q6_k"
        (_, into), *apart = _embeddings(model)
        types[into] = settings.type if apart else output
        types |= {name: output for _, name in apart}
    return types


def _mixed(model: PreTrainedModel, settings: Settings) -> dict[str, str]:
    from hemorrhage.models.architecture import entries

    tensors = _in_file(model)
    shapes = {name: (*((len(parts),) if len(parts) > 1 else ()), *shape) for name, (parts, shape) in tensors.items()}
    is_weighted = settings.importance or settings.imatrix is not None
    types = mix_types(settings.type, entries(model.config), shapes, is_weighted)
    return {part.removesuffix(".weight"): kind for name, kind in types.items() for part in tensors[name][0]}


def _in_file(model: PreTrainedModel) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Return the tensors of the model's file: the parameters that each is made of, and the shape of one of these."""
    from hemorrhage.models.architecture import entries
    from hemorrhage.models.formats.gguf_names import file_names
    from hemorrhage.models.formats.storage import distinct

    parameters = distinct(model)
    names = file_names(entries(model.config), parameters)
    return {name: (parts, tuple(parameters[parts[0]].shape)) for name, parts in names.items()}


def tensor_types(model: PreTrainedModel, settings: Settings, wanted: Mapping[str, str]) -> Mapping[str, Json]:
    """Count the types of the blocks' linear layers, for the manifest.

    ``types``: tensors by type; ``fell_back``: tensors without the type that is ``wanted`` for them; ``layer_bits``:
    stored bits per weight.
    """
    from hemorrhage.models.blocks import blocks
    from hemorrhage.models.formats.gguf_file import BlockLinear, block_size

    types: Counter[str] = Counter()
    bits = weights = 0.0
    fell = 0
    in_blocks = set(blocks(model).modules())
    for name, module in model.named_modules():
        if module not in in_blocks or not isinstance(module, BlockLinear | torch.nn.Linear):
            continue
        ggml_type = module.ggml_type if isinstance(module, BlockLinear) else "plain"
        types[ggml_type] += 1
        fell += ggml_type != wanted.get(name, settings.type)
        if isinstance(module, BlockLinear):
            width, size = block_size(module.ggml_type)
            bits += 8 * size / width * module.parameters_count
            weights += module.parameters_count
        else:
            bits += 8 * module.weight.element_size() * module.weight.numel()
            weights += module.weight.numel()
    return {"types": dict(types), "fell_back": fell, "layer_bits": bits / weights}


def type_of(wanted: str | None, columns: int) -> str | None:
    """Return the type that rows of ``columns`` weights get for ``wanted``; None: they stay as they are."""
    for ggml_type in (wanted, FALLBACK.get(wanted or "")):
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


def _squares(model: PreTrainedModel, settings: Settings, context: Context) -> Mapping[str, Callable[[], Tensor]]:
    """Return ``{layer: function that gives the mean squares of its inputs}``."""
    if settings.imatrix is not None:
        return _squares_of_file(model, Path(settings.imatrix))
    if not settings.importance:
        return {}
    statistics = context.calibration

    def square(first: str) -> Tensor:
        return statistics.norms(first).square()

    return {name: partial(square, first) for first, shared in statistics.shared().items() for name in shared}


def _squares_of_file(model: PreTrainedModel, path: Path) -> dict[str, Callable[[], Tensor]]:
    from hemorrhage.models.formats.imatrix import of_parts, read

    by_tensor = read(path)
    squares: dict[str, Callable[[], Tensor]] = {}
    for gguf_name, (parts, shape) in _in_file(model).items():
        each = of_parts(by_tensor, gguf_name, len(parts), shape[-1])
        if each is not None:
            layers = [part.removesuffix(".weight") for part in parts]
            squares |= {layer: partial(torch.clone, row) for layer, row in zip(layers, each, strict=True)}
    if not squares:
        raise ValueError(f"{path} is the importance matrix of another model: it has none of the tensors of this one")
    return squares


def _embeddings(model: PreTrainedModel) -> list[tuple[Any, str]]:
    """Return the embedding, and the head where it is not tied to it, with their names."""
    into, out = model.get_input_embeddings(), model.get_output_embeddings()
    modules = [into] if model.config.tie_word_embeddings else [into, out]
    names = {module: name for name, module in model.named_modules()}
    return [(module, names[module]) for module in modules]


METHOD = Method(
    MethodInfo(
        title="GGUF block types (llama.cpp)",
        summary="Q8_0 to Q2_K, IQ4, MXFP4, TQ, and llama.cpp's mixes (Q4_K_M); fallbacks counted; for some 40 families",
        examples=({"type": "q4_k"}, {"type": "q4_k", "importance": True}, {"type": "q4_k_m"}),
        storage=("gguf_file",),
    ),
    Settings,
    alter,
)
