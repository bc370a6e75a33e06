"""Mixture-of-experts layers as the bench holds them in memory: every expert's matrices are linear layers.

transformers keeps the experts of a layer as two three-dimensional parameters, which no method that goes through a
model's linear layers would see. ``unfuse`` takes them apart. A checkpoint of the families below names each expert's
matrices; the modules get these names, so that names in memory are names on disk, and what the bench saves is an
ordinary checkpoint of its family.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hemorrhage.models.blocks import blocks
from hemorrhage.models.refused import RefusedError

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

MIXTRAL = ("block_sparse_moe", ("w1", "w3", "w2"))

LAYOUTS = {
    "mixtral": MIXTRAL,
    "phimoe": MIXTRAL,
    "olmoe": ("mlp", PROJECTIONS),
    "qwen2_moe": ("mlp", PROJECTIONS),
    "qwen3_moe": ("mlp", PROJECTIONS),
}
"""Model type -> its checkpoints' names of a block's mixture, and of an expert's gate, up and down projection.

Of others the mixture has the same name on disk and in memory, and the projections are ``PROJECTIONS``."""

SMALL = 0.1
"""Share of a block's weights that may be in tensors which no method alters, such as the gates of a recurrence."""

ROUTERS = ("gate", "router")
"""Names that mixtures have for their router."""


class Expert(nn.Module):
    """A gated MLP: down(act(gate(x)) · up(x)), or what else its family makes of gate and up."""

    def __init__(self, linears: dict[str, nn.Linear], act: Any, gating: Callable[..., Tensor] | None = None) -> None:
        """``linears``: the gate, up and down projection, in this order, by their names in a checkpoint; ``gating``:
        what the family makes of the outputs of gate and up, where that is not act(gate) · up."""
        super().__init__()
        self._names = tuple(linears)
        for name, linear in linears.items():
            self.add_module(name, linear)
        self.act_fn = act
        # No module: it has no weights.
        self._gating: Callable[..., Tensor] | None
        vars(self)["_gating"] = gating

    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Return the gate, up and down projection."""
        gate, up, down = (self.get_submodule(name) for name in self._names)
        return gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [tokens, hidden] -> [tokens, hidden]."""
        gate, up, down = self.projections()
        gated = self._gating(gate(x), up(x)) if self._gating is not None else self.act_fn(gate(x)) * up(x)
        output: Tensor = down(gated)
        return output


class Experts(nn.ModuleList):
    """The experts of a block, in the place of transformers' fused ones."""

    every_token = False

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum over each token's experts: ``hidden_states`` [tokens, hidden], the others [tokens, k]."""
        result = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self):
            token, choice = torch.where(top_k_index == index)
            if self.every_token:
                output = expert(hidden_states)[token]
            elif len(token):
                output = expert(hidden_states[token])
            else:
                continue
            weighted = output * top_k_weights[token, choice, None]
            result.index_add_(0, token, weighted.to(result.dtype))
        return result


class SortedExperts(Experts):
    """Llama 4's, which get as many copies of all tokens as there are experts, times the router's scores.

    The score of an expert that a token does not take is zero, but for ``every_token``.
    """

    top_k = 1

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """``hidden_states`` [experts · tokens, hidden], and so is what leaves."""
        copies = self.copies(hidden_states)
        outputs = torch.stack([expert(tokens) for expert, tokens in zip(self, copies, strict=True)])
        if self.every_token:
            taken = torch.zeros(copies.shape[1::-1], dtype=torch.bool, device=copies.device)
            outputs = outputs * taken.scatter_(1, self.choices(copies), True).T[..., None]
        return outputs.flatten(0, 1)

    def copies(self, hidden_states: Tensor) -> Tensor:
        """Return ``hidden_states`` as [experts, tokens, hidden]."""
        return hidden_states.view(len(self), -1, hidden_states.shape[-1])

    def choices(self, copies: Tensor) -> Tensor:
        """Return the experts that each token takes, those of the highest scores: int64 [tokens, top_k]."""
        return copies.abs().amax(-1).T.topk(self.top_k, dim=-1).indices


class SharedGate(nn.Module):
    """The gate of a shared expert: routing, and so, like the router, no linear layer that methods alter."""

    def __init__(self, weight: nn.Parameter) -> None:
        """``weight`` [1, hidden]."""
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [tokens, hidden] -> [tokens, 1]."""
        return nn.functional.linear(x, self.weight)


class NoSharedExpert(nn.Module):
    """A shared expert of no width, which a checkpoint does not hold."""

    def forward(self, x: Tensor) -> Tensor:
        """Nothing is added to ``x`` [tokens, hidden]."""
        return torch.zeros_like(x)


def unfuse(model: PreTrainedModel) -> None:
    """Make the experts of ``model``, and GPT-2's transposed layers, linear layers, in place; others stay as they are.

    A layer at a time, so that no second copy of the model is made. Raises RefusedError where a block has a tensor of
    three dimensions that is in no known mixture and not small: methods would silently pass it by.
    """
    model_type = model.config.get_text_config(decoder=True).model_type
    for block in blocks(model):
        _make_linear(block)
        for mixture in [module for module in block.modules() if _is_fused(getattr(module, "experts", None))]:
            fused: Any = mixture.experts
            gates, downs = len(fused.gate_up_proj), len(fused.down_proj)
            if gates != downs:
                raise RefusedError(f"a {model_type} has gates of {gates} experts and down projections of {downs}")
            mixture.experts = split_experts(fused, LAYOUTS.get(model_type, ("", PROJECTIONS))[1])
            if mixture is getattr(block, "mlp", None):
                arrange(block, model_type)
        # A convolution's weight has three dimensions too.
        passed_over = [
            name
            for name, value in block.named_parameters()
            if value.dim() == 3 and not isinstance(block.get_submodule(name.rpartition(".")[0]), nn.Conv1d)
        ]
        size = sum(block.get_parameter(name).numel() for name in passed_over)
        if size > SMALL * sum(value.numel() for value in block.parameters()):
            raise RefusedError(
                f"the experts of a {model_type} ({passed_over[0]}) have an unknown layout and can't be altered"
            )


def _make_linear(block: nn.Module) -> None:
    """Make linear layers of the layers whose weights are stored as [inputs, outputs]."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(block.named_modules()):
        if isinstance(module, Conv1D):
            block.set_submodule(name, _linear(module.weight.data.T.contiguous(), module.bias.data))


def _is_fused(experts: Any) -> bool:
    weights = [getattr(experts, name, None) for name in ("gate_up_proj", "down_proj")]
    return all(isinstance(weight, nn.Parameter) and weight.dim() == 3 for weight in weights)


def is_fused(model: PreTrainedModel) -> bool:
    """Return whether a model has experts that ``unfuse`` takes apart."""
    return any(_is_fused(module) for module in model.modules())


def split_experts(fused: Any, names: tuple[str, ...]) -> Experts:
    """Return the experts of transformers' module ``fused``, whose ``gate_up_proj`` is [experts, 2 · width, hidden]."""
    from transformers.integrations.moe import _default_apply_gate

    is_transposed, is_interleaved = stacking(type(fused).__name__)
    apply_gate = getattr(type(fused), "_apply_gate", _default_apply_gate)
    gating = None if apply_gate is _default_apply_gate else _Gating(fused, is_interleaved)
    biases = [getattr(fused, f"{name}_bias", None) for name in ("gate_up_proj", "down_proj")]
    experts = []
    for index, (gate_up, down) in enumerate(zip(fused.gate_up_proj.data, fused.down_proj.data, strict=True)):
        matrices = (gate_up.T, down.T) if is_transposed else (gate_up, down)
        weights = [
            weight.clone(memory_format=torch.contiguous_format)
            for weight in (*_halves(matrices[0], is_interleaved), matrices[1])
        ]
        of_expert = [None if bias is None else bias.data[index] for bias in biases]
        split: list[Tensor | None] = [None] * 3
        if of_expert[0] is not None and of_expert[1] is not None:
            split = [bias.clone() for bias in (*_halves(of_expert[0], is_interleaved), of_expert[1])]
        linears = {name: _linear(weight, bias) for name, weight, bias in zip(names, weights, split, strict=True)}
        experts.append(Expert(linears, getattr(fused, "act_fn", None), gating))
    return (SortedExperts if _is_sorted(fused) else Experts)(experts)


def stacking(name: str) -> tuple[bool, bool]:
    """Return of a class of fused experts: is_transposed, [inputs, outputs]; is_interleaved, gate and up take turns."""
    return name.startswith(("GptOss", "Llama4")), name.startswith("GptOss")


def _halves(stacked: Tensor, is_interleaved: bool) -> tuple[Tensor, Tensor]:
    """Split [2 · width, ...] into gate and up."""
    if is_interleaved:
        return stacked[::2], stacked[1::2]
    return stacked[: len(stacked) // 2], stacked[len(stacked) // 2 :]


def _is_sorted(fused: Any) -> bool:
    return len(inspect.signature(fused.forward).parameters) == 1 and type(fused).__name__.startswith("Llama4")


class _Gating:
    """A family's function of gate and up, without the weights of its experts."""

    def __init__(self, fused: Any, is_interleaved: bool) -> None:
        self._fused = copy.copy(fused)
        self._fused._parameters = {}
        self._is_interleaved = is_interleaved

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        both = torch.stack([gate, up], -1).flatten(-2) if self._is_interleaved else torch.cat([gate, up], -1)
        gated: Tensor = self._fused._apply_gate(both)
        return gated


def new_expert(weights: Sequence[Tensor], names: tuple[str, ...], act: nn.Module) -> Expert:
    """Return an expert of ``weights``: gate and up [width, hidden], down [hidden, width]."""
    return Expert({name: _linear(weight) for name, weight in zip(names, weights, strict=True)}, act)


def arrange(block: Any, model_type: str) -> None:
    """Name the parts of a decoder block's mixture ``block.mlp`` as checkpoints of the family ``model_type`` do."""
    mlp = block.mlp
    if hasattr(mlp, "shared_expert_gate"):
        mlp.shared_expert_gate = SharedGate(mlp.shared_expert_gate.weight)
        if not mlp.shared_expert.down_proj.in_features:
            mlp.shared_expert = NoSharedExpert()
    name = LAYOUTS.get(model_type, ("mlp", ()))[0]
    if name == "mlp":
        return
    # The block's forward goes on finding its mixture at .mlp, where it is no registered module any more.
    _rename(block, "mlp", name)
    if hasattr(mlp, "router"):
        _rename(mlp, "router", "gate")


def _rename(module: Any, before: str, name: str) -> None:
    """Register the child ``before`` of ``module`` under another name; the old one still leads to it."""
    child = getattr(module, before)
    delattr(module, before)
    module.add_module(name, child)
    vars(module)[before] = child


def mixtures(model: nn.Module) -> dict[str, Any]:
    """Return ``{name: module}`` of the mixtures of experts of ``model``: each has a ``router`` and ``experts``."""
    return {
        name: module for name, module in model.named_modules() if isinstance(getattr(module, "experts", None), Experts)
    }


def router(mixture: nn.Module) -> Any:
    """Return the module that chooses the experts of each token."""
    return mixture.get_submodule(_router_name(mixture))


def _router_name(mixture: nn.Module) -> str:
    return next(name for name in ROUTERS if name in dict(mixture.named_children()))


def routing_layer(mixture: nn.Module) -> Any:
    """Return the layer of a mixture's router that has its weight [experts, hidden]."""
    module = router(mixture)
    # Hunyuan's is a module with a linear layer.
    return getattr(module, "wg", module)


def routing_logits(mixture: nn.Module, x: Tensor) -> Tensor:
    """Return what a mixture's router makes of ``x`` [tokens, hidden] before any softmax: float32 [tokens, experts]."""
    module = routing_layer(mixture)
    logits = nn.functional.linear(x, module.weight.to(x.dtype)).float()
    bias: Tensor | None = getattr(module, "bias", None)
    return logits if bias is None else logits + bias.float()


@contextlib.contextmanager
def record_choices(mixture: Any) -> Iterator[list[Tensor]]:
    """Record the experts that ``mixture`` chooses inside, in the list that is given: int64 [tokens, k] a pass."""
    choices: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        if isinstance(mixture.experts, SortedExperts):
            mixture.experts.top_k = mixture.top_k
            choices.append(mixture.experts.choices(mixture.experts.copies(arguments[0])))
        else:
            choices.append(named["top_k_index"] if "top_k_index" in named else arguments[1])

    hook = mixture.experts.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield choices
    finally:
        hook.remove()


def contributions(mixture: Any, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each expert the tokens of ``x`` [tokens, hidden] that take it, int64 [n], and what it adds to these.

    That is its output times the router's weight, [n, hidden]; of Llama 4, whose weight multiplies an expert's input,
    the output alone.
    """
    experts, given = mixture.experts, []

    def note(hidden_states: Tensor, *routes: Tensor, **named: Tensor) -> Tensor:
        given.append((hidden_states, *routes, *named.values()))
        return torch.zeros_like(hidden_states)

    vars(experts)["forward"] = note
    try:
        mixture(x[None])
    finally:
        del vars(experts)["forward"]
    hidden_states, *routes = given[0]
    if isinstance(experts, SortedExperts):
        experts.top_k = mixture.top_k
        copies = experts.copies(hidden_states)
        chosen = experts.choices(copies)
        for index, expert in enumerate(experts):
            token, _ = torch.where(chosen == index)
            yield token, expert(copies[index][token])
        return
    chosen, weights = routes
    for index, expert in enumerate(experts):
        token, choice = torch.where(chosen == index)
        yield token, expert(hidden_states[token]) * weights[token, choice, None]


def routing_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the layers of ``model`` that route: no method packs them, engines keep them as they are.

    They belong into the list of layers that a quantization's configuration ignores. A shared expert without width is
    among them, because transformers makes linear layers of it.
    """
    names = []
    for name, mixture in mixtures(model).items():
        names.append(f"{name}.{_router_name(mixture)}")
        if hasattr(mixture, "shared_expert_gate"):
            names.append(f"{name}.shared_expert_gate")
        if isinstance(getattr(mixture, "shared_expert", None), NoSharedExpert):
            names += [f"{name}.shared_expert.{projection}" for projection in PROJECTIONS]
    return names


@contextlib.contextmanager
def every_token(model: nn.Module) -> Iterator[None]:
    """Make every expert of ``model`` compute every token inside; the result is still that of the routed ones.

    For calibration: an expert to which no token of the calibration set is routed would have no statistics.
    """
    by_name = mixtures(model)
    for mixture in by_name.values():
        mixture.experts.every_token = True
        if isinstance(mixture.experts, SortedExperts):
            mixture.experts.top_k = mixture.top_k
            router(mixture).top_k = len(mixture.experts)
    try:
        yield
    finally:
        for mixture in by_name.values():
            del mixture.experts.every_token
            if isinstance(mixture.experts, SortedExperts):
                router(mixture).top_k = mixture.top_k


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear
