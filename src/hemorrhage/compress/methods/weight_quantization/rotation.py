"""Rotation before rounding: orthogonal matrices spread the outliers of a weight over all of its entries.

``transform: quarot`` is the rotation of the network itself (QuaRot, Ashkboos et al., arXiv 2404.00456), only
with those matrices that can be multiplied into the weights, so that the checkpoint is one like any other: the
norms' weights go into the linear layers behind them, R1 turns the residual stream, and an R2 per block turns
each head between the layer that makes its values and the one that reads them. They are random Hadamard matrices:
SpinQuant (Liu et al., arXiv 2405.16406) goes on to learn them, which is left out here, and so are R3 and R4, which have
to be computed when the model runs. The output embedding takes in the last norm, so it is no
longer the transposed input embedding: a model that ties both is stored with two. SmolLM2-135M, rotated and
rounded to nothing coarser than bfloat16, is 2e-4 nats per token from what it was.

What has to be turned is found by trying (compress.solvers.basis): fused layers, experts, routers and learned positions
are among it. A model whose stream a basis can't be changed of is refused. Layer norms subtract the mean; the paper
makes root mean square norms of them, which a checkpoint of such a family can't have. Here R1 leaves the vector of ones
as it is, so that the mean is what it was, and the layers that write lose theirs, which nothing reads. A norm's bias
goes into the biases behind it, or, where there are none, stays in the norm over the norm's weight. R2 is left out where
values are gated, clamped or weighed by more than the attention's softmax.

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

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.methods.weight_quantization import gptq, rtn
from hemorrhage.compress.solvers.basis import find_stream, kept_shift, stream_basis, untie
from hemorrhage.compress.solvers.grid import WIDTHS, GridSettings, Quantized, group_width
from hemorrhage.compress.solvers.packing import pack, store
from hemorrhage.compress.solvers.values import find_values
from hemorrhage.models.blocks import blocks
from hemorrhage.models.hadamard import factors
from hemorrhage.models.head import stored_name
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.compress.checks.fidelity import EquivalentTransform
    from hemorrhage.compress.solvers.basis import Basis, Stream

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

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where groups don't divide a layer's inputs, or the residual stream can't be turned."""
        problem = super().check_model(model)
        if self.transform == "quarot":
            plan_turns(model, 0)
        return problem


@dataclass(frozen=True)
class Turn:
    """A change of basis around a linear layer: ``W' = Uᵀ C W D V`` and ``b' = Uᵀ C (b + W s)``.

    V is ``inward``, U ``outward``, for the rows ``rows`` int64 [n] alone where they are given; D has the diagonal
    ``gain`` float32 [columns], s is ``shift`` float32 [columns], C takes the mean of all rows out where ``centre``.
    None is the identity, or zero.
    """

    inward: Basis | None = None
    outward: Basis | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None
    rows: Tensor | None = None
    centre: bool = False

    def weight(self, weight: Tensor) -> Tensor:
        """Return ``weight`` [rows, columns], turned: float32."""
        turned = weight.float() if self.gain is None else weight.float() * self.gain
        return self._out(turned if self.inward is None else self.inward.rotate(turned))

    def bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """Return ``bias`` [rows] of the layer with ``weight``, turned: float32."""
        added = bias.float() if self.shift is None else bias.float() + weight.float() @ self.shift
        return self._out(added[:, None])[:, 0]

    def _out(self, rows: Tensor) -> Tensor:
        """Turn ``rows`` float32 [rows, n] of a weight or bias."""
        if self.centre:
            rows = rows - rows.mean(0)
        if self.outward is None:
            return rows
        if self.rows is None:
            return self.outward.rotate(rows.T).T.contiguous()
        turned = rows.clone()
        turned[self.rows] = self.outward.rotate(rows[self.rows].T).T
        return turned

    def moment(self, moment: Tensor) -> Tensor:
        """Return second moment float32 [columns, columns] of what the turned layer reads: ``Vᵀ D⁻¹ H D⁻¹ V``.

        A feature that the norm scales with zero is lost: its moment is taken for zero. Of a norm with a bias, it is
        that of its output with the bias, wherever that went.
        """
        if self.gain is not None:
            inverse = torch.where(self.gain == 0, 0, 1 / self.gain)
            moment = moment * inverse * inverse[:, None]
        return moment if self.inward is None else self.inward.rotate(self.inward.rotate(moment).T)


@dataclass(frozen=True)
class Plan:
    """How a network is rotated.

    ``turns``: every linear layer of the blocks, and what else reads or writes the residual stream -> its turn;
    ``shifts``: norm -> what it goes on adding, in the new basis, or None.
    """

    stream: Stream
    turns: Mapping[str, Turn]
    shifts: Mapping[str, Tensor | None]


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Rotate ``model`` and quantize its decoder blocks, in place."""
    with torch.no_grad():
        if settings.transform == "quarot":
            _alter_network(model, settings, context)
        else:
            _alter_layers(model, settings, context)


def _alter_network(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    plan, linears = plan_turns(model, context.seed), linears_of(model)
    for name, quantized in _rounded(model, plan.turns.__getitem__, settings, context):
        bias = linears[name].bias
        if bias is not None:
            bias.copy_(plan.turns[name].bias(bias, linears[name].weight))
        store(model, name, quantized, settings)
    turn_stream(model, plan, set(linears))


def _alter_layers(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    from hemorrhage.models.formats.rotated import build_rotation, rotated_linear
    from hemorrhage.models.formats.storage import replace as replace_layer

    groups = context.calibration.shared() if settings.statistics else None
    linears = linears_of(model)
    origins = incoherence(linears, groups, context.seed)

    def turn(name: str) -> Turn:
        inward, outward = origins[name]
        return Turn(build_rotation(inward), build_rotation(outward))

    for name, quantized in _rounded(model, turn, settings, context):
        inward, outward = origins[name]
        packed = pack(name, quantized, settings.bits)
        replace_layer(model, name, rotated_linear(packed, settings.bits, outward, inward, linears[name].bias))


def plan_turns(model: PreTrainedModel, seed: int) -> Plan:
    """Return how ``model`` is rotated by R1 and R2, its norms' weights taken in by what reads them.

    R2 is for those blocks whose values can be in another basis. Raises RefusedError where R1 can't be.
    """
    numbers = random.Random(seed)
    stream = find_stream(model)
    basis = stream_basis(stream.width, stream.keeps_mean, numbers.getrandbits(62))
    turns = dict.fromkeys(linears_of(model), Turn())
    shifts: dict[str, Tensor | None] = {}
    for name, norm in stream.norms.items():
        readers = stream.readers_of(name)
        # Where there is no bias to take the norm's in, the norm keeps it.
        has_biases = all(getattr(model.get_submodule(reader), "bias", None) is not None for reader in readers)
        shift = None if has_biases else kept_shift(norm)
        shifts[name] = None if shift is None else basis.rotate(shift)
        turns |= dict.fromkeys(readers, Turn(basis, gain=norm.gain, shift=norm.shift if has_biases else None))
    turns |= {name: Turn(basis) for name, norm in stream.readers.items() if norm is None}
    for name in stream.writers:
        # The rows of an embedding are vectors of the stream.
        is_table = isinstance(model.get_submodule(name), torch.nn.Embedding)
        turns[name] = Turn(basis) if is_table else Turn(outward=basis, centre=stream.is_centred)
    names = {module: name for name, module in model.named_modules()}
    for block, values in zip(blocks(model), find_values(model, stream), strict=True):
        if values is None:
            continue
        head = stream_basis(values.width, False, numbers.getrandbits(62))
        maker, reader = (f"{names[block]}.{name}" for name in (values.maker, values.reader))
        rows = values.rows.flatten()
        is_whole = torch.equal(rows, torch.arange(len(model.get_parameter(f"{maker}.weight"))))
        turns[maker] = replace(turns[maker], outward=head, rows=None if is_whole else rows)
        turns[reader] = replace(turns[reader], inward=head)
    return Plan(stream, turns, shifts)


def turn_stream(model: PreTrainedModel, plan: Plan, done: Collection[str]) -> None:
    """Turn what a plan has besides the layers ``done``: embeddings, head, routers; make all norms' weights one."""
    untie(model)
    for name in plan.turns.keys() - set(done):
        module: Any = model.get_submodule(name)
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias.copy_(plan.turns[name].bias(bias, module.weight))
        if isinstance(module, torch.nn.Embedding) or name == stored_name(model):
            for rows in module.weight.split(ROWS):
                rows.copy_(plan.turns[name].weight(rows))
        else:
            # Some families have routers in float32, which are stored in the dtype of the others.
            module.weight.copy_(plan.turns[name].weight(module.weight).to(model.dtype))
    for name, norm in plan.stream.norms.items():
        norm.make_plain(plan.shifts[name])


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
