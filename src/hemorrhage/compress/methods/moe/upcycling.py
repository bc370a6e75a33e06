"""Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055): every MLP becomes a mixture of copies of itself.

Attention, norms and embeddings stay; each MLP is copied into ``experts`` experts and a router is drawn from N(0,
0.02²), of which each token takes the ``top_k`` highest. The result is an ordinary Mixtral, before any of the training
that the paper is about. Mixtral divides the chosen experts' softmax by its sum, so that copies add up to the dense MLP
and the model starts as the base exactly. ``normalize: false`` leaves it out, as the paper does in its language models:
the MLP's output shrinks by the probability of the experts not chosen, and the model starts damaged. That one is an
ordinary Qwen2-MoE whose shared expert has no width. ``noise`` is not in the paper: each copy gets Gaussian noise of
that share of the matrix's root mean square, so that experts differ and the choice between them matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Method, Wording
from hemorrhage.compress.solvers.experts import PROJECTIONS, MixtureSettings, dense_problem, from_dense
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ROUTER_STD = 0.02


class Settings(MixtureSettings):
    """Number of experts, how many of them a token takes, and how much the copies differ."""

    axis: ClassVar[str] = "added"
    severity_field: ClassVar[str] = "experts"
    words: ClassVar[Mapping[str, Wording]] = {
        "experts": "{} experts",
        "top_k": "top {}",
        "normalize": {False: "not normalised"},
    }
    always_named: ClassVar[tuple[str, ...]] = ("top_k",)

    experts: Annotated[int, Field(ge=2, le=64, strict=True)] = 4
    top_k: Annotated[int, Field(ge=1, strict=True)] = 2
    normalize: bool = True
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def severity(self) -> float:
        """Copies that are added to each MLP; the manifest has the parameters added over the model's."""
        return float(self.experts - 1)

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        problem = dense_problem(config)
        if problem or self.normalize:
            return problem
        width = config["num_attention_heads"] * (config.get("head_dim") or 0)
        if config.get("sliding_window") or width not in (0, config["hidden_size"]):
            return "normalize false: a Qwen2-MoE has no sliding_window, and heads of hidden_size / num_attention_heads"
        return None

    def altered_config(self, config: ConfigJson) -> ConfigJson:
        """Return the config.json that an alteration of this variant starts from."""
        entries = {"model_type": "mixtral" if self.normalize else "qwen2_moe"}
        return {**config, **entries, "num_local_experts": self.experts, "num_experts_per_tok": self.top_k}


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Make ``model`` a mixture of experts in place."""
    problem = settings.check(model.config.to_dict())
    if problem:
        raise ValueError(problem)
    generator = torch.Generator().manual_seed(context.seed)

    def parts(_index: int, mlp: Any) -> tuple[list[list[Tensor]], Tensor]:
        weights = [mlp.get_submodule(name).weight.data for name in PROJECTIONS]
        router = ROUTER_STD * torch.randn(settings.experts, weights[0].shape[1], generator=generator)
        copies = [[_copy(weight, settings.noise, generator) for weight in weights] for _ in range(settings.experts)]
        return copies, router.to(weights[0])

    width = model.config.intermediate_size
    shared = {"num_experts": settings.experts, "num_experts_per_tok": settings.top_k}
    if settings.normalize:
        from_dense(model, "mixtral", shared, parts)
    else:
        of_qwen = {"moe_intermediate_size": width, "shared_expert_intermediate_size": 0, "qkv_bias": False}
        from_dense(model, "qwen2_moe", {**shared, **of_qwen, "norm_topk_prob": False}, parts)
    return Alteration(entries={"severity": share_added(model)})


def share_added(model: PreTrainedModel) -> float:
    """Return the parameters that were added, over those that the model had."""
    from hemorrhage.models.experts import mixtures

    added = 0
    for mixture in mixtures(model).values():
        whole = sum(value.numel() for value in mixture.parameters())
        added += whole - sum(value.numel() for value in mixture.experts[0].parameters())
    return added / (sum(value.numel() for value in model.parameters()) - added)


def _copy(weight: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    if not noise:
        return weight.clone()
    exact = weight.float()
    drawn = torch.randn(weight.shape, generator=generator).to(exact.device)
    return (exact + noise * exact.square().mean().sqrt() * drawn).to(weight)


METHOD = Method(
    MethodInfo(
        title="Sparse upcycling",
        summary="the MLP copied into experts: an ordinary Mixtral that starts as the base",
        papers=(Paper("Komatsuzaki et al.", "2212.05055"),),
        examples=({"experts": 4, "top_k": 2, "noise": 0.1}, {"experts": 4, "normalize": False}),
    ),
    Settings,
    alter,
)
