"""What the methods that make, split and disturb mixtures of experts share.

A dense Llama or Mistral becomes a mixture of a family that engines know: Mixtral, whose router's softmax is normalised
over the chosen experts, or Qwen2-MoE without its shared expert, whose is not. Attention and norms are the same there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hemorrhage.compress.method import ConfigJson, Settings
from hemorrhage.models.blocks import blocks
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

DENSE = ("llama", "mistral")
"""Model types that can become a mixture."""

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

NUMBERS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Names that configurations and modules have for the number of experts that a router chooses from."""

Family = Literal["mixtral", "qwen2_moe"]
Parts = Callable[[int, Any], tuple[Sequence[Sequence["Tensor"]], "Tensor"]]
"""Index and MLP of a dense block -> gate, up and down weight of each expert, and the router [experts, hidden]."""


class MixtureSettings(Settings):
    """How many experts a dense MLP becomes, and how many of them a token takes."""

    experts: Annotated[int, Field(ge=2, le=64, strict=True)]
    top_k: Annotated[int, Field(ge=1, strict=True)]

    @model_validator(mode="after")
    def _chosen_of_experts(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} of {self.experts} experts: at most {self.experts} can be chosen")
        return self


def number_of_experts(config: ConfigJson) -> int:
    """Return the experts of a block of a model with this config.json; 0 where it has none."""
    return config.get("num_local_experts") or config.get("num_experts") or 0


def dense_problem(config: ConfigJson) -> str | None:
    """Return the reason why a model with this config.json can't become a mixture of experts, or None."""
    if config["model_type"] not in DENSE:
        return f"model_type {config['model_type']} can't become a mixture of experts; {' and '.join(DENSE)} can"
    for bias in ("attention_bias", "mlp_bias"):
        if config.get(bias):
            return f"{bias}: a mixture of experts has no place for it"
    return None


def from_dense(model: PreTrainedModel, family: Family, changes: dict[str, Any], parts: Parts) -> None:
    """Make the dense ``model`` a mixture of experts of ``family``, in place.

    ``changes``: entries of the new configuration beside those that both families have. Everything but the MLPs is kept
    as it is. Raises ValueError where an MLP is not the gated one of a Llama.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from hemorrhage.models.experts import LAYOUTS, Experts, arrange, new_expert

    names = LAYOUTS[family][1]
    known = AutoConfig.for_model(family).to_dict()
    same = {key: value for key, value in model.config.to_dict().items() if key in known and key not in NOT_KEPT}
    config = AutoConfig.for_model(family, **{**same, **changes})
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]]
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"), no_init_weights():
        other = AutoModelForCausalLM.from_config(config)
    kept = {name: value for name, value in model.state_dict().items() if ".mlp." not in name}
    pairs: Any = zip(blocks(model), blocks(other), strict=True)
    for index, (old, new) in enumerate(pairs):
        _check_mlp(old.mlp, f"layer {index}")
        experts, router = parts(index, old.mlp)
        new.mlp.gate.weight = torch.nn.Parameter(router)
        new.mlp.experts = Experts([new_expert(weights, names, old.mlp.act_fn) for weights in experts])
        if family == "qwen2_moe":
            new.mlp.shared_expert_gate.weight = torch.nn.Parameter(torch.zeros_like(router[:1]))
        arrange(new, family)
    other.load_state_dict(kept, strict=False, assign=True)
    other.tie_weights()
    decoder = other.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(model.device)
    empty = [name for name, value in other.named_parameters() if value.is_meta]
    if empty:
        raise ValueError(f"{type(model).__name__} has no {empty[0]}; it can't become a {type(other).__name__}")
    other.generation_config = model.generation_config
    other.eval()
    # In place: whoever holds the model holds the mixture from here on.
    model.__class__ = type(other)
    vars(model).clear()
    vars(model).update(vars(other))


NOT_KEPT = ("architectures", "model_type", "transformers_version")
"""Entries of a configuration that are a family's own."""


def _check_mlp(mlp: nn.Module, where: str) -> None:
    linears = {name for name, module in mlp.named_modules() if isinstance(module, torch.nn.Linear)}
    if linears != set(PROJECTIONS) or any(mlp.get_submodule(name).bias is not None for name in linears):
        raise ValueError(f"{where}: a mixture is made of MLPs with {', '.join(PROJECTIONS)} without bias only")


def keep_experts(mixture: Any, kept: Sequence[int]) -> None:
    """Leave the experts ``kept``, their rows of the router, and their entries of what else it has for each expert."""
    from hemorrhage.models.experts import router

    number = len(mixture.experts)
    mixture.experts = type(mixture.experts)([mixture.experts[index] for index in kept])
    for module in (mixture, *router(mixture).modules()):
        tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        for name, value in tensors.items():
            # A correction may be a row of one for each expert.
            dim = next((dim for dim, size in enumerate(value.shape) if size == number), None)
            if dim is not None:
                less = value.data.index_select(dim, torch.tensor(kept, device=value.device))
                setattr(module, name, torch.nn.Parameter(less) if name in module._parameters else less)
        for name in (*NUMBERS, "out_features"):
            if vars(module).get(name) == number:
                setattr(module, name, len(kept))


def set_number_of_experts(config: Any, number: int) -> None:
    """Write the number of experts of a block into a configuration."""
    text = config.get_text_config(decoder=True)
    # One of them is the other's name in some families.
    for key in NUMBERS:
        if hasattr(text, key):
            setattr(text, key, number)
