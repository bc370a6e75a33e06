"""Rotation before rounding: orthogonal matrices spread the outliers of a weight over all of its entries.

``transform: quarot`` is the rotation of the network itself (QuaRot, Ashkboos et al., arXiv 2404.00456), only
with those matrices that can be multiplied into the weights, so that the checkpoint is one like any other: the
norms' weights go into the linear layers behind them, R1 turns the residual stream, and an R2 per block turns
each head between ``v_proj`` and ``o_proj``. They are random Hadamard matrices: SpinQuant (Liu et al., arXiv
2405.16406) goes on to learn them, which is left out here, and so are R3 and R4, which have to be computed when
the model runs. The output embedding takes in the last norm, so it is no
longer the transposed input embedding: a model that ties both is stored with two. SmolLM2-135M, rotated and
rounded to nothing coarser than bfloat16, is 2e-4 nats per token from what it was.

R1 also brings back what the norms silenced: behind SmolLM2-135M's norms a weight of 1e-3 holds down features
with half of the energy, and once these are spread over the whole input, every weight's error meets them.
Rounding to nearest loses more than without the rotation there; GPTQ, which sees them in the second moment,
does not.

``transform: quip`` is incoherence processing (QuIP, Chee et al., arXiv 2307.13304; with Hadamard matrices:
QuIP#, Tseng et al., arXiv 2402.04396): each layer's ``Uᵀ W V`` is rounded, and whoever reads the checkpoint
turns it back. QuIP's rounding LDLQ is that of GPTQ, as the paper shows, so ``rounding: gptq`` follows it; its
rescaling of the diagonals, its range from the spectrum and its greedy passes are left out, and so are the
lattices of QuIP#.

The rounding is that of RTN, or of GPTQ with the second moment ``Vᵀ H V`` of the rotated input.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import ConfigJson, Context, Method, Wording
from hemorrhage.compress.methods.weight_quantization import gptq, rtn
from hemorrhage.compress.solvers.grid import WIDTHS, GridSettings, Quantized, group_width
from hemorrhage.compress.solvers.packing import pack, store
from hemorrhage.models.blocks import blocks
from hemorrhage.models.hadamard import Rotation, factors, rotation
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.compress.checks.fidelity import EquivalentTransform

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures whose blocks are those that ``turns`` knows, with norms that only scale."""

READS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Norm of a block -> the linear layers that read the residual stream through it."""
WRITES = ("self_attn.o_proj", "mlp.down_proj")
"""The linear layers of a block that write to the residual stream."""

ROWS = 16384
"""Rows of an embedding that are turned at once."""


class Settings(GridSettings):
    """The grid, what is rotated, and how the rotated weights are rounded."""

    words: ClassVar[Mapping[str, Wording]] = {**GridSettings.words, "transform": "{}", "rounding": "{}"}
    always_named: ClassVar[tuple[str, ...]] = (*GridSettings.always_named, "rounding")

    transform: Literal["quarot", "quip"]
    rounding: Literal["rtn", "gptq"] = "rtn"

    @field_validator("transform", mode="before")
    @classmethod
    def _not_learned(cls, value: object) -> object:
        if value == "spinquant":
            raise ValueError("spinquant is now quarot: its Hadamard matrices are not learned")
        return value

    @model_validator(mode="after")
    def _zeros_are_mixed(self) -> Settings:
        if self.keep_zeros:
            raise ValueError("keep_zeros has to be false: a rotation leaves no weight zero")
        return self

    @property
    def equivalent_transform(self) -> EquivalentTransform:
        """QuaRot's rotations stay in the weights; QuIP's are undone by whoever reads them."""
        return "rotated" if self.transform == "quarot" else ""

    @property
    def second_order(self) -> bool:
        """Where GPTQ rounds, columns make up for each other."""
        return self.rounding == "gptq"

    @property
    def statistics(self) -> tuple[str, ...]:
        """The second moments of the layers' inputs, where the rounding reads them."""
        return ("hessian",) if self.rounding == "gptq" else ()

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        model_type = config.get("model_type", "llama")
        if self.transform == "quarot" and model_type not in MODEL_TYPES:
            return f"transform quarot is for {', '.join(MODEL_TYPES)}; the model is a {model_type}"
        return super().check(config)

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where groups don't divide a layer's inputs, or quarot does not know a layer."""
        if self.transform == "quarot":
            _refuse_unknown(model)
        return super().check_model(model)


@dataclass(frozen=True)
class Turn:
    """A change of basis around a linear layer: ``W' = Uᵀ W D V``.

    V is ``inward``, U ``outward``, and D has the diagonal ``gain`` float32 [columns]; None is the identity.
    """

    inward: Rotation | None = None
    outward: Rotation | None = None
    gain: Tensor | None = None

    def weight(self, weight: Tensor) -> Tensor:
        """Return ``weight`` [rows, columns], turned: float32."""
        turned = weight.float() if self.gain is None else weight.float() * self.gain
        turned = turned if self.inward is None else self.inward.rotate(turned)
        return turned if self.outward is None else self.outward.rotate(turned.T).T.contiguous()

    def bias(self, bias: Tensor) -> Tensor:
        """Return ``bias`` [rows], turned: float32."""
        return bias.float() if self.outward is None else self.outward.rotate(bias.float())

    def moment(self, moment: Tensor) -> Tensor:
        """Return second moment float32 [columns, columns] of what the turned layer reads: ``Vᵀ D⁻¹ H D⁻¹ V``.

        A feature that the norm scales with zero is lost: its moment is taken for zero.
        """
        if self.gain is not None:
            inverse = torch.where(self.gain == 0, 0, 1 / self.gain)
            moment = moment * inverse * inverse[:, None]
        return moment if self.inward is None else self.inward.rotate(self.inward.rotate(moment).T)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Rotate ``model`` and quantize its decoder blocks, in place."""
    with torch.no_grad():
        if settings.transform == "quarot":
            _alter_network(model, settings, context)
        else:
            _alter_layers(model, settings, context)


def _alter_network(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    plan, linears = turns(model, context.seed), linears_of(model)
    for name, quantized in _rounded(model, plan.__getitem__, settings, context):
        bias = linears[name].bias
        if bias is not None:
            bias.copy_(plan[name].bias(bias))
        store(model, name, quantized, settings)
    turn_stream(model, context.seed)


def _alter_layers(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    from hemorrhage.models.formats.rotated import build_rotation, rotated_linear
    from hemorrhage.models.formats.storage import replace

    groups = context.calibration.shared() if settings.statistics else None
    linears = linears_of(model)
    origins = incoherence(linears, groups, context.seed)

    def turn(name: str) -> Turn:
        inward, outward = origins[name]
        return Turn(build_rotation(inward), build_rotation(outward))

    for name, quantized in _rounded(model, turn, settings, context):
        inward, outward = origins[name]
        packed = pack(name, quantized, settings.bits)
        replace(model, name, rotated_linear(packed, settings.bits, outward, inward, linears[name].bias))


def turns(model: PreTrainedModel, seed: int) -> dict[str, Turn]:
    """Return ``{linear: turn}`` that rotate the blocks of ``model`` by R1 and R2 and take in the norms' weights.

    Raises ValueError for another architecture, and where a block has other layers than these.
    """
    if model.config.model_type not in MODEL_TYPES:
        raise ValueError(f"transform quarot is for {', '.join(MODEL_TYPES)}; this is a {model.config.model_type}")
    names = {module: name for name, module in model.named_modules()}
    numbers = random.Random(seed)
    stream = _spin(model.config.hidden_size, numbers)
    turns: dict[str, Turn] = {}
    stack: Any = blocks(model)
    _refuse_unknown(model)
    for block in stack:
        head = _spin(block.self_attn.head_dim, numbers)
        for norm, readers in READS.items():
            gain = block.get_submodule(norm).weight.float().clone()
            for reader in readers:
                outward = head if reader.endswith("v_proj") else None
                turns[names[block.get_submodule(reader)]] = Turn(stream, outward, gain)
        for writer in WRITES:
            inward = head if writer.endswith("o_proj") else None
            turns[names[block.get_submodule(writer)]] = Turn(inward, stream)
    return turns


def _refuse_unknown(model: PreTrainedModel) -> None:
    names = {module: name for name, module in model.named_modules()}
    known = {*itertools.chain(*READS.values()), *WRITES}
    expected = {f"{names[block]}.{layer}" for block in blocks(model) for layer in known}
    other = set(linears_of(model)) ^ expected
    if other:
        raise RefusedError(f"{min(other)}: quarot does not know this layer")


def turn_stream(model: PreTrainedModel, seed: int) -> None:
    """Turn both embeddings by R1, whose blocks were turned by ``turns``, and make all norms' weights one."""
    stream = _spin(model.config.hidden_size, random.Random(seed))
    embedding: Any = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    last = model.get_decoder().norm.weight
    if head.weight is embedding:
        head.weight = torch.nn.Parameter(embedding.detach().clone())
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
    for weight, turn in ((embedding, Turn(stream)), (head.weight, Turn(stream, gain=last.float()))):
        for rows in weight.split(ROWS):
            rows.copy_(turn.weight(rows))
    last.fill_(1)
    for block in blocks(model):
        for norm in READS:
            block.get_parameter(f"{norm}.weight").fill_(1)


def incoherence(
    linears: dict[str, nn.Linear], groups: dict[str, list[str]] | None, seed: int
) -> dict[str, tuple[Any, Any]]:
    """Return ``{linear: (inward, outward)}``: what V and U of every linear layer are made from.

    The layers of one of ``groups`` read the same input and have the same V; without groups all have their
    own.
    """
    numbers = random.Random(seed)
    origins = {}
    for first, names in (groups or {name: [name] for name in linears}).items():
        inward = _origin(linears[first].in_features, numbers)
        for name in names:
            origins[name] = inward, _origin(linears[name].out_features, numbers)
    return origins


def _rounded(
    model: PreTrainedModel, turn: Callable[[str], Turn], settings: Settings, context: Context
) -> Iterator[tuple[str, Quantized]]:
    """Return every linear layer of the blocks, turned and rounded, one input after the other."""
    linears = linears_of(model)
    if settings.rounding == "rtn":
        for name, linear in linears.items():
            width = group_width(name, linear.in_features, settings)
            turned = turn(name).weight(linear.weight)
            yield name, rtn.quantize(turned, width, settings, linear.weight.dtype)
        return
    statistics = context.calibration
    chosen = gptq.Settings(bits=settings.bits, group_size=settings.group_size, symmetric=settings.symmetric)
    for first, names in statistics.shared().items():
        width = group_width(first, linears[first].in_features, settings)
        moment = turn(first).moment(statistics.second_moment(first))
        weights = [turn(name).weight(linears[name].weight) for name in names]
        dtype = linears[first].weight.dtype
        yield from zip(names, gptq.quantize(weights, moment, width, chosen, dtype), strict=True)


def _spin(width: int, numbers: random.Random) -> Rotation:
    """Draw a rotation of the network: a random-signed Hadamard matrix, else one random orthogonal matrix."""
    left, right, from_hadamard = factors(width)
    if not from_hadamard:
        left, right = 1, width
    return rotation(numbers.getrandbits(62), left, right, from_hadamard=from_hadamard)


def _origin(width: int, numbers: random.Random) -> tuple[int, int, int, bool]:
    return (numbers.getrandbits(62), *factors(width))


METHOD = Method(
    MethodInfo(
        title="Rotation (QuaRot, QuIP)",
        summary="`quarot`: Hadamard rotations folded into the weights; `quip`: incoherence; then RTN or GPTQ",
        papers=(Paper("Ashkboos et al.", "2404.00456"), Paper("Chee et al.", "2307.13304")),
        examples=(
            {"transform": "quarot", "bits": 4, "group_size": 64, "rounding": "gptq"},
            {"transform": "quip", "bits": 4, "group_size": 64},
        ),
        storage=("packed", "rotated"),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
