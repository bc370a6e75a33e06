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
"""

from __future__ import annotations

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
from hemorrhage.compress.solvers.stack import FEWER
from hemorrhage.models.blocks import blocks
from hemorrhage.models.hadamard import orthogonal
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.compress.checks.fidelity import EquivalentTransform

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures whose blocks are those below, with norms of the stream that only scale."""

ATTENTION_READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION_WRITES = "self_attn.o_proj"
MLP_READS = ("mlp.gate_proj", "mlp.up_proj")
MLP_WRITES = "mlp.down_proj"
NORMS = ("input_layernorm", "post_attention_layernorm")

ROUND = 8
"""The width that is kept is a multiple of this, as in the paper's code, and at least this."""

ROWS = 16384
"""Rows of an embedding that are in float64 at once."""


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
        model_type = config.get("model_type", "llama")
        if model_type not in MODEL_TYPES:
            return f"slicegpt is for {', '.join(MODEL_TYPES)}; this model is a {model_type}"
        if model_type == "qwen3" and self.rotation == "model":
            return "rotation model can't be for a qwen3: the norms of its heads share the epsilon that has to change"
        width = config["hidden_size"]
        kept = self.kept(width, config["num_attention_heads"])
        if kept < ROUND:
            return f"removed {self.removed} of the hidden size {width} leaves {kept} columns; {ROUND} must stay"
        return None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where a block has other layers than those that are sliced."""
        for index, block in enumerate(blocks(model)):
            _check_block(block, index)
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
    problem = settings.check(model.config.to_dict())
    if problem:
        raise ValueError(problem)
    for index, block in enumerate(blocks(model)):
        _check_block(block, index)
    before = _block_parameters(model)
    generator = torch.Generator().manual_seed(context.seed)
    with torch.no_grad():
        _untie(model)
        slicing = _slice_blocks if settings.rotation == "block" else _slice_model
        slicing(model, settings, context.calibration.tokens(), generator)
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


def _slice_model(model: PreTrainedModel, settings: Settings, tokens: Tensor, generator: torch.Generator) -> None:
    from hemorrhage.models.formats.sliced import set_parameter

    config: Any = model.config
    width = config.hidden_size
    kept = settings.kept(width, config.num_attention_heads)
    turn = _basis(_stream_moment(model, tokens), settings, generator)[:, :kept]
    wider = width / kept
    decoder: Any = model.get_decoder()
    _turn_embedding(model, turn)
    for block in decoder.layers:
        for norm, readers in zip(NORMS, (ATTENTION_READS, MLP_READS), strict=True):
            for name in readers:
                linear: Any = block.get_submodule(name)
                set_parameter(
                    linear, "weight", reads(linear.weight, block.get_submodule(norm).weight * wider**0.5, turn)
                )
        for name in (ATTENTION_WRITES, MLP_WRITES):
            _write(block.get_submodule(name), turn)
        config.head_dim = block.self_attn.head_dim
    _turn_head(model, decoder.norm.weight * wider**0.5, turn)
    for norm in [decoder.norm, *(block.get_submodule(name) for block in decoder.layers for name in NORMS)]:
        set_parameter(norm, "weight", torch.ones_like(norm.weight[:kept]))
        norm.variance_epsilon *= wider
    config.hidden_size = kept
    config.rms_norm_eps *= wider


def _stream_moment(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the sum over the inputs of all norms of the stream of their second moments: float64 [n, n]."""
    from hemorrhage.models.blockwise import in_float32, run_block

    walk = Walk(model, tokens, {})
    total = [torch.zeros((), dtype=torch.float64)]

    def see(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        total[0] = total[0] + second_moment(arguments)

    states = walk.states
    for block, arguments in zip(blocks(model), walk.arguments, strict=True):
        hooks = [block.get_submodule(norm).register_forward_pre_hook(see) for norm in NORMS]
        try:
            with in_float32(block):
                states = [run_block(block, state, arguments) for state in states]
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


def _write(linear: Any, turn: Tensor) -> None:
    from hemorrhage.models.formats.sliced import set_parameter

    set_parameter(linear, "weight", writes(linear.weight, turn))
    if linear.bias is not None:
        set_parameter(linear, "bias", writes(linear.bias, turn))


def _untie(model: PreTrainedModel) -> None:
    """Say that embedding and head are two matrices; each gets a new one when it is turned."""
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def _block_parameters(model: PreTrainedModel) -> int:
    return sum(value.numel() for value in blocks(model).parameters())


def _check_block(block: nn.Module, index: int) -> None:
    """Raise RefusedError where a block has other layers than those that are sliced here."""
    linears = {name for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
    wanted = {*ATTENTION_READS, ATTENTION_WRITES, *MLP_READS, MLP_WRITES}
    norms = {name for name, _ in block.named_children()} & set(NORMS)
    other = (linears ^ wanted) | (set(NORMS) - norms)
    if other:
        raise RefusedError(f"block {index}, {min(other)}: slicegpt slices {', '.join(sorted(wanted))} behind two norms")


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
