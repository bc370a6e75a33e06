"""Whether a published model was made from this base: what a compression leaves alone is compared, number by number.

Norms and biases are the same in every file that was quantized or pruned from a base; a fine-tuned model, another
revision or another model differs in them. A method that scales layers against each other (AWQ, SmoothQuant) changes
norms and the layers after them by the same factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from hemorrhage.compress.checks.fidelity import decibels, unscaled
from hemorrhage.models.blocks import blocks
from hemorrhage.models.formats.storage import distinct, formatted_layers
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch
from hemorrhage.runtime.step import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

TOLERANCE = 2.0**-7
"""Relative: what rounding to bfloat16 and back to another type of 16 bits may change."""

QUANTIZED = 0.5
"""Relative error of an embedding that was quantized itself; of two models' it is above 1."""

LAYERS = 8
"""Linear layers that are fitted to tell scaled weights from those of another model."""

COMPUTED = (
    "hidden_act",
    "hidden_activation",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rope_parameters",
    "partial_rotary_factor",
    "num_experts_per_tok",
    "norm_topk_prob",
    "routed_scaling_factor",
    "attention_multiplier",
    "residual_multiplier",
    "embedding_multiplier",
    "logits_scaling",
    "logit_scale",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)
"""Settings by which the same weights give other logits."""

GAIN_DB = 6.0
"""Decibels that taking scales out has to gain before weights count as scaled."""

Origin = Literal["same", "scaled", "other", "unknown"]


@dataclass(frozen=True)
class Lineage:
    """``verdict``: ``same``, what is not compressed is the base's; ``scaled``, up to factors between layers; ``other``,
    it was made from another model; ``unknown``, no name of a tensor is the base's.

    ``compared`` tensors, of which those named in ``differing`` are not the base's. ``blocks``: the base's block that
    each block is, None where they are the base's in order.
    """

    verdict: Origin
    compared: int
    differing: tuple[str, ...]
    blocks: list[int] | None

    def as_json(self) -> Mapping[str, str | int | list[str]]:
        """Plain content for the manifest."""
        return {"verdict": self.verdict, "compared": self.compared, "differing": list(self.differing)}


def compare(published: PreTrainedModel, base: PreTrainedModel) -> Lineage:
    """Compare the tensors that no compression alters, and where they differ the layers up to scales."""
    origins = block_origins(published, base)
    theirs, ours = left_alone(published), {_of_text(name): value for name, value in left_alone(base).items()}
    pairs = {name: _of_text(_source(name, origins, published)) for name in theirs}
    compared = [name for name, source in pairs.items() if source in ours]
    if not compared:
        return Lineage("unknown", 0, (), origins)
    differing = tuple(name for name in compared if not same(theirs[name], ours[pairs[name]]))
    if not differing:
        return Lineage("same", len(compared), (), origins)
    is_scaled = origins is None and scales_explain(published, base)
    return Lineage("scaled" if is_scaled else "other", len(compared), differing, origins)


def _of_text(name: str) -> str:
    """Return the name that a tensor of a wrapper's text tower has in the text model alone."""
    return name.replace("language_model.", "")


def left_alone(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors outside the blocks' linear layers, routers among them."""
    linears = {*linears_of(model, missing_ok=True), *formatted_layers(model)}
    return {
        name: value
        for name, value in distinct(model).items()
        if name.rpartition(".")[0] not in linears and value.is_floating_point()
    }


def same(theirs: Tensor, ours: Tensor) -> bool:
    """Return whether a tensor is the base's but for its type; of a matrix, but for being quantized."""
    if theirs.shape != ours.shape:
        return False
    theirs, ours = theirs.float(), ours.float()
    error = (theirs - ours).abs()
    # Sums of squares: a few numbers below the smallest of float16 are lost in it.
    if bool((error <= TOLERANCE * ours.abs() + 1e-6).all()):
        return True
    return ours.dim() > 1 and error.norm().item() < QUANTIZED * ours.norm().item()


def block_origins(published: PreTrainedModel, base: PreTrainedModel) -> list[int] | None:
    """Return the base's block whose norms each block has; None where their numbers are the same, or nothing fits."""
    theirs, ours = blocks(published), blocks(base)
    if len(theirs) == len(ours):
        return None
    origins: list[int] = []
    for block in theirs:
        after = origins[-1] if origins else -1
        equal = [index for index, other in enumerate(ours) if _same_vectors(block, other)]
        # Copies follow what they were copied from.
        ahead = [index for index in equal if index > after] or equal
        if not ahead:
            return None
        origins.append(ahead[0])
    return origins


def _same_vectors(block: nn.Module, other: nn.Module) -> bool:
    vectors = {name: value for name, value in other.named_parameters() if value.dim() == 1}
    mine = {name: value for name, value in block.named_parameters() if value.dim() == 1}
    return bool(vectors) and all(name in mine and same(mine[name], value) for name, value in vectors.items())


def _source(name: str, origins: list[int] | None, model: PreTrainedModel) -> str:
    if origins is None:
        return name
    prefix = next(path for path, module in model.named_modules() if module is blocks(model)) + "."
    if not name.startswith(prefix):
        return name
    index, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{origins[int(index)]}.{rest}"


def scales_explain(published: PreTrainedModel, base: PreTrainedModel) -> bool:
    """Return whether layers are the base's much better once scales of their rows and columns are taken out."""
    theirs = {**linears_of(published, missing_ok=True), **formatted_layers(published)}
    ours = linears_of(base)
    shared = [name for name in ours if name in theirs]
    chosen = shared[:: max(1, len(shared) // LAYERS)]
    gains = [_gain(_dense(theirs[name]), ours[name].weight.detach()) for name in chosen]
    return bool(gains) and median(gains) > GAIN_DB


def _gain(theirs: Tensor, ours: Tensor) -> float:
    if theirs.shape != ours.shape:
        return 0.0
    with torch.no_grad():
        before, after = ours.float(), theirs.float()
        signal = before.square().sum().item()
        raw = decibels(signal, (after - before).square().sum().item())
        return decibels(signal, (unscaled(before, after) - before).square().sum().item()) - raw


def _dense(layer: nn.Module) -> Tensor:
    from hemorrhage.models.formats.storage import FormattedLinear

    if isinstance(layer, FormattedLinear):
        return layer.dense()
    return layer.get_parameter("weight").detach()


def cut_padding(published: PreTrainedModel, base: PreTrainedModel) -> str:
    """Cut rows of the embedding and the head that the base does not have; return a sentence, or nothing.

    Raises InputError where the published model has fewer: its probabilities are not over the same tokens.
    """
    rows, wanted = (_rows(model) for model in (published, base))
    if rows == wanted:
        return ""
    if rows < wanted:
        raise InputError(f"its vocabulary has {rows} rows and the base's {wanted}: they are not of one model")
    published.resize_token_embeddings(wanted, mean_resizing=False)
    return f"{rows - wanted} rows of padding behind the base's vocabulary of {wanted} were cut."


def _rows(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def compare_settings(published: PreTrainedConfig, base: PreTrainedConfig) -> str:
    """Return a sentence where both configurations compute otherwise with the same weights, or nothing."""
    theirs, ours = (config.get_text_config(decoder=True).to_dict() for config in (published, base))
    known = [name for name in COMPUTED if name in theirs and name in ours]
    different = [name for name in known if not _equal(theirs[name], ours[name])]
    if not different:
        return ""
    shown = ", ".join(f"{name} {theirs[name]} in place of {ours[name]}" for name in different)
    return f"Its configuration computes otherwise than the base's: {shown}."


def _equal(theirs: object, ours: object) -> bool:
    """Return whether two settings are equal but for rounding; of mappings, what both of them name."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return all(_equal(theirs[key], ours[key]) for key in theirs if key in ours)
    if isinstance(theirs, float | int) and isinstance(ours, float | int):
        return math.isclose(theirs, ours, rel_tol=1e-5)
    return theirs == ours


def compare_tokens(theirs: Mapping[int, str] | None, ours: Mapping[int, str] | None) -> str:
    """Return a sentence where the published tokenizer has other tokens than the base's, or nothing."""
    if theirs is None or ours is None:
        return ""
    different = sorted(number for number, token in ours.items() if theirs.get(number, token) != token)
    if not different:
        return ""
    first = different[0]
    return (
        f"Its tokenizer has other tokens than the base's in {len(different)} places, the first of them {first}: "
        f"{theirs[first]!r} in place of {ours[first]!r}. The base's tokenizer is used."
    )
