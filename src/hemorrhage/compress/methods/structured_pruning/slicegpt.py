"""SliceGPT (Ashkboos et al., arXiv 2401.15024): the residual stream is turned by a PCA and loses its last columns.

The norms' weights go into the linear layers behind them, so that a norm only divides by a root mean square, and that
no orthogonal matrix changes. With Q from the signals that a norm reads, ``x Q`` has its least important columns at the
end; the layers that read it become ``W Q``, those that write it ``Qᵀ W``, and the last columns go.

``rotation: block`` is the paper's: every norm has a basis of its own, and between two of them the residual connection
goes through ``Q_lᵀ Q_{l+1}`` [kept, kept]. These two matrices per block are new parameters, so the blocks lose less
than the slice: all their other matrices lose that share of one side. At width 576 with MLPs of 1536 the blocks *grow*
below a slice of about 14 %. The manifest's severity is the measured share of the blocks' parameters, which may then
be negative. The bases are computed block by block on calibration tokens that came through what was sliced before, as
in the paper's code. The norms keep the mean over the original width.

``rotation: model`` has one basis for the whole stream, from the sum of the second moments of all norms' inputs in the
unsliced model, and no shortcuts. What comes out is an ordinary, narrower model. Its norms take the mean over the k
columns that are left of n, which is undone exactly: ``1 / √(Σx²/n + ε) = √(n/k) / √(Σx²/k + ε n/k)``, so the layers
behind a norm take in ``√(n/k)``, and config.json says ``ε n/k``.

Every position of the calibration windows counts, a beginning-of-sequence token too where the tokenizer puts one. The
paper's code adds 1 % of the mean diagonal to the second moment, which moves no eigenvector, and may turn what is kept
at random afterwards, which changes nothing that a model computes; both are left out. That code by default leaves the
head its full width; here the head is sliced like everything that reads the stream. Tied embeddings become two matrices.
Without the paper's recovery fine-tuning.

What reads and writes the stream is found by trying (compress.solvers.basis): learned positions, experts with their
routers, parallel and recurrent blocks are among it, and a model whose stream has no basis to be chosen is refused. Of
layer norms, as in the paper, the layers that write subtract the mean, and the biases go into those of the layers behind
them, which get some where they had none. ``rotation: model`` is for root mean square norms alone, and for families
whose config.json can say everything that changes.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from tqdm import tqdm

from hemorrhage.calibrate import triangle
from hemorrhage.calibrate.statistics import Walk
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Method, Wording, percent
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.basis import find_adders, find_stream, untie
from hemorrhage.compress.solvers.stack import FEWER
from hemorrhage.models.blocks import blocks
from hemorrhage.models.formats.config import LAYOUT
from hemorrhage.models.hadamard import orthogonal
from hemorrhage.models.head import stored_name
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.compress.checks.fidelity import EquivalentTransform
    from hemorrhage.compress.solvers.basis import Norm, Stream
    from hemorrhage.models.formats.sliced import Stage as SlicedStage

ATTENTION_READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION_WRITES = "self_attn.o_proj"
MLP_READS = ("mlp.gate_proj", "mlp.up_proj")
MLP_WRITES = "mlp.down_proj"
NORMS = ("input_layernorm", "post_attention_layernorm")

ROUND = 8
"""The width that is kept is a multiple of this, as in the paper's code, and at least this."""

ROWS = 16384
"""Rows of an embedding that are in float64 at once."""

ALIKE = 1e-3
"""How far a factor that is measured in float32 may be from one."""


def columns_removed(share: float) -> str:
    """Return how much is cut, in words."""
    return f"{percent(share)} of the hidden size"


class Settings(Base):
    """The share of the hidden size to cut, whose basis it is cut in, and where the basis comes from.

    ``basis: random`` is the control: random orthogonal matrices instead of the PCA's. The manifest's severity is the
    measured share of the blocks' parameters.
    """

    axis: ClassVar[str] = "removed"
    severity_field: ClassVar[str] = "removed"
    words: ClassVar[Mapping[str, Wording]] = {
        "removed": columns_removed,
        "rotation": {"block": "a basis per block", "model": "one basis"},
        "basis": "{}",
    }
    always_named: ClassVar[tuple[str, ...]] = ("rotation",)
    controls: ClassVar[Mapping[str, tuple[Any, ...]]] = {"basis": ("random",)}

    removed: Annotated[float, Field(ge=0, lt=1)]
    rotation: Literal["block", "model"] = "block"
    basis: Literal["pca", "random"] = "pca"

    @property
    def equivalent_transform(self) -> EquivalentTransform:
        """The residual stream is in another basis."""
        return "rotated"

    @property
    def statistics(self) -> tuple[str, ...]:
        """The calibration windows: what they do inside the model changes while it is sliced."""
        return ("tokens",)

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        width = config["hidden_size"]
        kept = self.kept(width, config.get("num_attention_heads") or 1)
        if kept < ROUND:
            return f"removed {self.removed} of the hidden size {width} leaves {kept} columns; {ROUND} must stay"
        return None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where the residual stream can't be sliced, or config.json can't say how."""
        stream = _sliceable_stream(model)
        if self.rotation == "model":
            _narrower_config(model, stream, self)
        elif not _is_like_llama(model, stream):
            find_adders(model, stream)
        return None

    def kept(self, width: int, heads: int) -> int:
        """Return columns that stay of ``width``, in a model of ``heads`` query heads: rounded down to a multiple of 8.

        For one basis a multiple of the heads, too: transformers takes no Llama whose heads do not divide its width.
        """
        if not self.removed:
            return width
        step = ROUND if self.rotation == "block" else math.lcm(ROUND, heads)
        # Rounded first, because (1 - 0.9) * 640 is 63.99999999999999.
        return int(round((1 - self.removed) * width, 6)) // step * step


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Slice ``model`` in place; with a basis per block it has the form hemorrhage.models.formats.sliced afterwards.

    Returns the measured share of the blocks' parameters that went, shortcuts counted, and what the PCA saw.
    """
    stream = _sliceable_stream(model)
    kept = _kept(model, stream, settings)
    if kept < ROUND:
        raise ValueError(f"removed {settings.removed} leaves {kept} columns; {ROUND} must stay")
    before = _block_parameters(model)
    generator = torch.Generator().manual_seed(context.seed)
    tokens = context.calibration.tokens()
    with torch.no_grad():
        untie(model)
        if settings.rotation == "model":
            _slice_model(model, stream, settings, tokens, generator)
        elif _is_like_llama(model, stream):
            _slice_blocks(model, settings, tokens, generator)
        else:
            _slice_stages(model, stream, settings, tokens, generator)
    severity = 1 - _block_parameters(model) / before
    propagated = {"statistics": "errors propagated"} if settings.rotation == "block" else {}
    return Alteration(entries={"severity": severity, **propagated})


def principal(moment: Tensor) -> Tensor:
    """Return the eigenvectors of a second moment, float64 [n, n], as columns.

    That of the largest eigenvalue comes first.
    """
    eigenvectors: Tensor = torch.linalg.eigh(moment).eigenvectors
    return eigenvectors.flip(1)


def second_moment(states: Sequence[Tensor]) -> Tensor:
    """Return the sum of x xᵀ over the tokens of ``states`` [..., n]: float64 [n, n]."""
    # Not in float32: a few tokens have 10⁵ times the energy of the others, whose directions would be lost.
    width = states[0].shape[-1]
    XtX = states[0].new_zeros((width, width), dtype=torch.float64)
    for state in states:
        triangle.add_square(XtX, state.flatten(0, -2).double())
    triangle.mirror(XtX)
    return XtX


def reads(weight: Tensor, gain: Tensor, turn: Tensor) -> Tensor:
    """Return ``W D Q``: what reads the stream in the basis ``turn`` float64 [n, k]; D has the diagonal ``gain`` [n].

    ``weight`` [rows, n] -> [rows, k] of its dtype.
    """
    gain = gain.double()
    return torch.cat([((rows.double() * gain) @ turn).to(weight.dtype) for rows in weight.split(ROWS)])


def writes(value: Tensor, turn: Tensor) -> Tensor:
    """Return ``Qᵀ W`` of a weight [n, columns] or bias [n] that writes the stream: [k, columns] or [k] of its dtype."""
    return (turn.T @ value.double()).to(value.dtype)


def _slice_blocks(model: PreTrainedModel, settings: Settings, tokens: Tensor, generator: torch.Generator) -> None:
    from hemorrhage.models.blockwise import in_float32
    from hemorrhage.models.formats.sliced import SlicedBlock, SlicedNorm, set_parameter

    config: Any = model.config
    kept = settings.kept(config.hidden_size, config.num_attention_heads)
    config.hemorrhage = {**(getattr(config, "hemorrhage", None) or {}), "form": "sliced", "kept": kept}
    walk = Walk(model, tokens, {})
    decoder: Any = model.get_decoder()
    dtype = decoder.embed_tokens.weight.dtype

    def basis() -> Tensor:
        return _basis(second_moment(states), settings, generator)[:, :kept]

    def shortcut(before: Tensor, after: Tensor) -> Tensor:
        return (before.T @ after).to(dtype)

    # Here the states are in the basis they come in, all columns wide; in the layers, in that of ``turn``.
    states = walk.states

    def through(module: Callable[[Tensor], Tensor], turn: Tensor) -> None:
        turn = turn.float()
        for index, state in enumerate(states):
            x = state @ turn
            states[index] = x @ turn.T + module(x)

    turn = basis()
    _turn_embedding(model, turn)
    for index in tqdm(range(len(decoder.layers)), desc="slicegpt", unit="block", mininterval=5, leave=False):
        block, arguments = decoder.layers[index], walk.arguments[index]
        gains = [block.get_submodule(norm).weight for norm in NORMS]
        new = SlicedBlock(block, config)
        for name in ATTENTION_READS:
            linear: Any = new.get_submodule(name)
            set_parameter(linear, "weight", reads(linear.weight, gains[0], turn))
        with in_float32(new.self_attn):
            through(partial(new.attend, **arguments), turn)
        middle = basis()
        _write(new.get_submodule(ATTENTION_WRITES), middle)
        for name in MLP_READS:
            linear = new.get_submodule(name)
            set_parameter(linear, "weight", reads(linear.weight, gains[1], middle))
        with in_float32(new.mlp):
            through(new.feed, middle)
        after = basis()
        _write(new.get_submodule(MLP_WRITES), after)
        set_parameter(new, "attention_shortcut", shortcut(turn, middle))
        set_parameter(new, "mlp_shortcut", shortcut(middle, after))
        decoder.layers[index], turn = new, after
    _turn_head(model, decoder.norm.weight, turn)
    decoder.norm = SlicedNorm(config.hidden_size, config.rms_norm_eps)


def _slice_stages(
    model: PreTrainedModel, stream: Stream, settings: Settings, tokens: Tensor, generator: torch.Generator
) -> None:
    """Slice blocks of any structure: their own, with narrower layers, other norms, and shortcuts put in."""
    from hemorrhage.models.formats import sliced

    kept = _kept(model, stream, settings)
    adders = find_adders(model, stream)
    last = {stream.last: stream.norms[stream.last].epsilon} if stream.last else {}
    walk = Walk(model, tokens, {})
    names = {module: name for name, module in model.named_modules()}

    def basis(states: Sequence[Tensor]) -> Tensor:
        centred = [_centred(state, stream) for state in states]
        return _basis(second_moment(centred), settings, generator)[:, :kept]

    turn = basis(walk.states)
    _turn_tables(model, stream, turn)
    of_blocks: list[list[sliced.Stage]] = []
    for index, block in enumerate(tqdm(blocks(model), desc="slicegpt", unit="block", mininterval=5, leave=False)):
        stages = [
            sliced.Stage(
                norms={norm: stream.norms[f"{names[block]}.{norm}"].epsilon for norm in stage.reads if norm},
                adds=adds,
                factor=stage.gives.get(adds, 1.0),
            )
            for stage, adds in zip(stream.stages[index], adders[index], strict=True)
        ]
        turns = _turns_inside(walk, index, stream, stages, turn, basis)
        dtype = block.get_parameter(f"{stream.stages[index][0].writers[0]}.weight").dtype
        for stage, (before, after) in zip(stream.stages[index], itertools.pairwise(turns), strict=True):
            for norm, readers in stage.reads.items():
                for reader in readers:
                    _read(block.get_submodule(reader), stream.norms[f"{names[block]}.{norm}"], before, dtype)
            for writer in stage.writers:
                _write(block.get_submodule(writer), after, centre=stream.is_centred)
        sliced.install(block, stages, stream.width, kept)
        for number, (before, after) in enumerate(itertools.pairwise(turns)):
            sliced.set_parameter(block, f"shortcut_{number}", (before.T @ after).to(dtype))
        of_blocks.append(stages)
        turn = turns[-1]
    for name, eps in last.items():
        head: Any = model.get_submodule(stored_name(model))
        _read(head, stream.norms[name], turn, head.weight.dtype)
        model.set_submodule(name, sliced.SlicedNorm(stream.width, eps))
    entry = {"form": "sliced", "kept": kept, "stages": of_blocks, "last": last, LAYOUT: "by layer"}
    config: Any = model.config
    config.hemorrhage = {**(getattr(config, "hemorrhage", None) or {}), **entry}


def _turns_inside(
    walk: Walk,
    index: int,
    stream: Stream,
    stages: Sequence[SlicedStage],
    turn: Tensor,
    basis: Callable[[Sequence[Tensor]], Tensor],
) -> list[Tensor]:
    """Take the states through a block that is sliced at each of its stages, all columns wide.

    Returns the basis of what enters each stage, ``turn`` the first, and of what leaves the block.
    """
    from hemorrhage.models.blockwise import in_float32, run_block

    block, arguments, states = blocks(walk.model)[index], walk.arguments[index], walk.states
    originals = {name: block.get_submodule(name) for stage in stages for name in stage["norms"]}
    hooks, turns = [], [turn]

    def run() -> list[Tensor]:
        return [run_block(block, state, arguments, number) for number, state in enumerate(states)]

    with in_float32(block):
        try:
            for number, stage in enumerate(stages):
                if number:
                    read: list[Tensor] = []
                    first = block.get_submodule(next(iter(stage["norms"])))
                    hook = first.register_forward_pre_hook(lambda _, x, read=read: read.append(x[0]))
                    run()
                    hook.remove()
                    turns.append(basis(read))
                shared = _SharedStage(turns[-1].float(), stream.is_centred, stage["factor"])
                for name in stage["norms"]:
                    place = next(norm for norm in stream.norms.values() if norm.module is originals[name])
                    block.set_submodule(name, _wide_norm(place, shared))
                hooks.append(block.get_submodule(stage["adds"]).register_forward_hook(shared.project))
            states[:] = run()
            turns.append(basis(states))
        finally:
            for hook in hooks:
                hook.remove()
            for name, norm in originals.items():
                block.set_submodule(name, norm)
    return turns


class _SharedStage:
    """What the norms of a stage and the module that adds to it share while all columns are there.

    The stream x is projected on the columns of ``turn`` [n, k]: its norms read that, and so does what follows.
    """

    def __init__(self, turn: Tensor, centre: bool, factor: float) -> None:
        self.turn, self.centre, self.factor = turn, centre, factor
        self.change: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        """Return the projection of ``x`` [..., n]."""
        centred = x - x.mean(-1, keepdim=True) if self.centre else x
        projected = centred @ self.turn @ self.turn.T
        self.change = projected - x
        return projected

    def project(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Add to a module's output what makes the residual connection the projection."""
        first = output[0] if isinstance(output, tuple) else output
        assert self.change is not None
        added = first + (self.change / self.factor).view_as(first)
        return (added, *output[1:]) if isinstance(output, tuple) else added


def _wide_norm(norm: Norm, shared: _SharedStage) -> nn.Module:
    """Return the norm of projected states, with the gain and shift of ``norm``."""
    from hemorrhage.models.formats.sliced import SlicedNorm

    gain, shift, plain = norm.gain, norm.shift, SlicedNorm(norm.width, norm.epsilon)

    class Wide(torch.nn.Module):
        """Reads all columns."""

        def forward(self, x: Tensor) -> Tensor:
            normed: Tensor = plain(shared.enter(x)) * gain
            return normed if shift is None else normed + shift

    wide = Wide()
    setattr(wide, "weight", getattr(norm.module, "weight", None))  # noqa: B010 a parameter, of whatever norm it is
    return wide


def _centred(state: Tensor, stream: Stream) -> Tensor:
    return state - state.mean(-1, keepdim=True) if stream.is_centred else state


def _turn_tables(model: PreTrainedModel, stream: Stream, turn: Tensor) -> None:
    """Put what writes to the stream outside of the blocks into the basis ``turn``."""
    from hemorrhage.models.formats.sliced import set_parameter

    inside = {module for block in blocks(model) for module in block.modules()}
    for name in stream.writers:
        module: Any = model.get_submodule(name)
        if isinstance(module, torch.nn.Embedding):
            # The rows lose their mean with the basis that they are turned by.
            wide = turn - turn.mean(0) if stream.is_centred else turn
            set_parameter(module, "weight", reads(module.weight, torch.ones(len(turn)), wide))
        elif module not in inside:
            _write(module, turn, centre=stream.is_centred)


def _read(layer: Any, norm: Norm, turn: Tensor, dtype: torch.dtype) -> None:
    """Make a layer read a norm without gain and shift in the basis ``turn``; its bias takes in the shift."""
    from hemorrhage.models.formats.sliced import set_parameter

    shift = norm.shift
    if shift is not None:
        added = layer.weight.float() @ shift
        set_parameter(layer, "bias", (added if layer.bias is None else layer.bias + added).to(dtype))
    # Some families have routers in float32, which are stored in the dtype of the others.
    set_parameter(layer, "weight", reads(layer.weight, norm.gain, turn).to(dtype))


def _slice_model(
    model: PreTrainedModel, stream: Stream, settings: Settings, tokens: Tensor, generator: torch.Generator
) -> None:
    from hemorrhage.models.formats.sliced import narrow_routing, set_parameter

    config = _narrower_config(model, stream, settings)
    width, kept = stream.width, _kept(model, stream, settings)
    turn = _basis(_stream_moment(model, stream, tokens), settings, generator)[:, :kept]
    wider = width / kept
    _turn_tables(model, stream, turn)
    names = {module: name for name, module in model.named_modules()}
    for block, stages in zip(blocks(model), stream.stages, strict=True):
        for stage in stages:
            for norm, readers in stage.reads.items():
                for reader in readers:
                    layer: Any = block.get_submodule(reader)
                    gain = _gain(stream.norms[f"{names[block]}.{norm}"])
                    set_parameter(layer, "weight", reads(layer.weight, gain * wider**0.5, turn).to(model.dtype))
            for writer in stage.writers:
                _write(block.get_submodule(writer), turn)
        narrow_routing(block, width, kept)
    assert stream.last is not None
    _turn_head(model, _gain(stream.norms[stream.last]) * wider**0.5, turn)
    for place in stream.norms.values():
        if getattr(place.module, "weight", None) is not None:
            set_parameter(place.module, "weight", torch.full_like(place.module.weight[:kept], 1 - place.offset))
        key = _epsilon_key(place.module)
        setattr(place.module, key, getattr(place.module, key) * wider)
    vars(model.config).update(vars(config))


def _gain(norm: Norm) -> Tensor:
    """Return the gain of a norm, in its weight's dtype where it is the weight."""
    weight: Tensor | None = getattr(norm.module, "weight", None)
    return norm.gain if weight is None or norm.offset else weight


def _epsilon_key(norm: nn.Module) -> str:
    """Return the attribute of a norm that is added under its root. Raises RefusedError where it has none."""
    key = next(
        (key for key in ("variance_epsilon", "eps", "epsilon") if isinstance(getattr(norm, key, None), float)), None
    )
    if key is None:
        raise RefusedError(f"rotation model has to change the epsilon of a {type(norm).__name__}, which keeps none")
    return key


def _narrower_config(model: PreTrainedModel, stream: Stream, settings: Settings) -> Any:
    """Return the configuration of the narrower model. Raises RefusedError where it can't say all of it."""
    config: Any = copy.deepcopy(model.config)
    kind = f"rotation model can't be for a {config.model_type}"
    if stream.keeps_mean or any(norm.shift is not None for norm in stream.norms.values()):
        raise RefusedError(f"{kind}: its norms subtract a mean or add numbers; rotation block can")
    if stream.scale is not None and abs(stream.scale / stream.width**0.5 - 1) < 1e-2:
        raise RefusedError(f"{kind}: its embeddings are multiplied by the root of the hidden size")
    kept, heads = _kept(model, stream, settings), getattr(config, "num_attention_heads", None)
    wider = stream.width / kept
    if heads:
        config.head_dim = getattr(config, "head_dim", None) or stream.width // heads
    config.hidden_size = kept
    config.tie_word_embeddings = False
    epsilons = {getattr(norm.module, _epsilon_key(norm.module)) for norm in stream.norms.values()}
    for key, value in config.to_dict().items():
        if "eps" in key and value in epsilons:
            setattr(config, key, value * wider)
    _check_config(model, stream, config, kept)
    return config


def _check_config(model: PreTrainedModel, stream: Stream, config: Any, kept: int) -> None:
    """Raise RefusedError where the model of ``config`` is not the one with ``kept`` columns."""
    from hemorrhage.models.architecture import skeleton
    from hemorrhage.models.experts import unfuse

    kind = f"rotation model can't be for a {config.model_type}"
    wider = stream.width / kept
    twin = skeleton(config)
    unfuse(twin)
    shapes = {name: value.shape for name, value in twin.named_parameters()}
    for name, shape in _narrower_shapes(model, stream, kept).items():
        if shapes.get(name) != shape:
            raise RefusedError(f"{kind}: config.json can't say that {name} is {list(shape)}")
    modules = dict(model.named_modules())
    for name, module in twin.named_modules():
        for key, value in vars(module).items():
            before = vars(modules[name]).get(key) if name in modules else None
            changes = name in stream.norms and key == _epsilon_key(module)
            if isinstance(before, float) and value != before * (wider if changes else 1):
                raise RefusedError(f"{kind}: with fewer columns {name} would have another {key}")


def _narrower_shapes(model: PreTrainedModel, stream: Stream, kept: int) -> dict[str, torch.Size]:
    """Return the shape of every parameter of the model with ``kept`` columns."""
    shapes = {}
    for name, value in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        shape = list(value.shape)
        is_table = isinstance(model.get_submodule(layer), torch.nn.Embedding)
        is_read = layer in stream.readers and kind == "weight"
        if layer in stream.norms or is_read or (is_table and layer in stream.writers):
            shape[-1] = kept
        if layer in stream.writers and not is_table:
            shape[0] = kept
        shapes[name] = torch.Size(shape)
    return {**shapes, f"{stored_name(model)}.weight": torch.Size([model.get_output_embeddings().weight.shape[0], kept])}


def _stream_moment(model: PreTrainedModel, stream: Stream, tokens: Tensor) -> Tensor:
    """Return the sum over the inputs of all norms of the stream of their second moments: float64 [n, n]."""
    from hemorrhage.models.blockwise import in_float32, run_block

    walk = Walk(model, tokens, {})
    total = [torch.zeros((), dtype=torch.float64)]

    def see(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        total[0] = total[0] + second_moment(arguments)

    states = walk.states
    for block, arguments, stages in zip(blocks(model), walk.arguments, stream.stages, strict=True):
        # Norms of one stage read the same.
        first = [next(iter(stage.reads)) for stage in stages]
        hooks = [block.get_submodule(norm).register_forward_pre_hook(see) for norm in first if norm]
        try:
            with in_float32(block):
                states = [run_block(block, state, arguments, number) for number, state in enumerate(states)]
        finally:
            for hook in hooks:
                hook.remove()
    return total[0] + second_moment(states)


def _basis(moment: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    return principal(moment) if settings.basis == "pca" else orthogonal(len(moment), generator)


def _turn_embedding(model: PreTrainedModel, turn: Tensor) -> None:
    from hemorrhage.models.formats.sliced import set_parameter

    embedding: Any = model.get_input_embeddings()
    set_parameter(embedding, "weight", reads(embedding.weight, torch.ones(len(turn)), turn))


def _turn_head(model: PreTrainedModel, gain: Tensor, turn: Tensor) -> None:
    from hemorrhage.models.formats.sliced import set_parameter

    head: Any = model.get_output_embeddings()
    set_parameter(head, "weight", reads(head.weight, gain, turn))


def _write(linear: Any, turn: Tensor, centre: bool = False) -> None:
    """Make a layer write in the basis ``turn``; where ``centre`` without the mean over its outputs."""
    from hemorrhage.models.formats.sliced import set_parameter

    for name in ("weight", "bias"):
        value = getattr(linear, name)
        if value is not None:
            set_parameter(
                linear, name, writes(value - value.double().mean(0) if centre else value, turn).to(value.dtype)
            )


def _block_parameters(model: PreTrainedModel) -> int:
    return sum(value.numel() for value in blocks(model).parameters())


def _sliceable_stream(model: PreTrainedModel) -> Stream:
    """Return the residual stream. Raises RefusedError where it can't be sliced."""
    stream = find_stream(model)
    name = type(model).__name__
    if stream.scale is None:
        raise RefusedError(f"the embeddings of {name} are normalised, which fewer columns would alter")
    if stream.last is None or stream.readers.get(stored_name(model)) != stream.last or None in stream.readers.values():
        raise RefusedError(f"slicegpt is for models that read the stream through norms; {name} does not everywhere")
    if stream.keeps_mean and not stream.is_centred:
        raise RefusedError(f"some norms of {name} subtract a mean and some do not")
    for reader, norm in stream.readers.items():
        layer = model.get_submodule(reader)
        if norm and stream.norms[norm].shift is not None and not isinstance(layer, torch.nn.Linear):
            raise RefusedError(f"{reader} of {name} has no bias that could take in that of {norm}")
    return stream


def _is_like_llama(model: PreTrainedModel, stream: Stream) -> bool:
    """Return whether all blocks are Llama's attention and MLP, which have a format with shortcuts of their own."""
    wanted = [(NORMS[0], ATTENTION_READS, ATTENTION_WRITES), (NORMS[1], MLP_READS, MLP_WRITES)]
    for block, stages in zip(blocks(model), stream.stages, strict=True):
        linears = {name for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
        if linears != {*ATTENTION_READS, ATTENTION_WRITES, *MLP_READS, MLP_WRITES} or len(stages) != len(wanted):
            return False
        for stage, (norm, readers, writer) in zip(stages, wanted, strict=True):
            if stage.reads != {norm: readers} or stage.writers != (writer,) or abs(stage.gives[writer] - 1) > ALIKE:
                return False
    return stream.last == "model.norm" and all(
        not norm.subtracts_mean and not norm.offset and norm.module.weight is not None for norm in stream.norms.values()
    )


def _kept(model: PreTrainedModel, stream: Stream, settings: Settings) -> int:
    return settings.kept(stream.width, getattr(model.config, "num_attention_heads", None) or 1)


METHOD = Method(
    MethodInfo(
        title="SliceGPT",
        summary="the residual stream rotated by PCA and cut; one basis a block, or one for the model",
        papers=(Paper("Ashkboos et al.", "2401.15024"),),
        examples=({"removed": 0.25}, {"removed": 0.25, "rotation": "model", "basis": "random"}),
        storage=("sliced", "plain"),
        values=FEWER,
    ),
    Settings,
    alter,
)
