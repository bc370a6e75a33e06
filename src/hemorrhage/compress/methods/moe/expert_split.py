"""Splitting the MLPs into experts (LLaMA-MoE, Zhu et al., arXiv 2406.16554), before any training.

The channels of each MLP are split at random into ``experts`` equal parts, the partition that is best in the paper; a
part with its rows of the gate and up projection and its columns of the down projection is an expert, and each token
takes ``top_k`` of them. The result is an ordinary Mixtral of the same size that computes less. It weighs the chosen
experts by a softmax that sums to one, 1 / ``top_k`` each here: the router's logits are made so small (root mean square
0.001) that they choose, but hardly weigh. The down projections undo it:

- ``scale: sum`` (times ``top_k``): what is chosen counts as in the dense MLP, the rest is gone (as in MoEfication,
  arXiv 2110.01786). With ``top_k`` = ``experts`` the model is the base.
- ``scale: expected`` (times ``experts``): that, times ``experts`` / ``top_k`` for what is missing, which keeps the mean
  of a random choice. LLaMA-MoE's code has a factor for it (``score_scale_factor``), chosen per model.

``router: regression`` chooses by what an expert would give: ridge regression on the calibration tokens, from the MLP's
input to ‖E_i(x)‖ / Σ_j ‖E_j(x)‖, with 1 % of the mean of diag(x xᵀ) on the diagonal. ``router: random`` is drawn from a
normal distribution, as LLaMA-MoE's before it is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from tqdm import tqdm

from hemorrhage.calibrate.expert_usage import mlp_inputs
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import ConfigJson, Context, Method, Wording
from hemorrhage.compress.solvers.experts import PROJECTIONS, MixtureSettings, dense_problem, from_dense
from hemorrhage.models.blocks import blocks
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LOGITS = 1e-3
"""Root mean square of the router's logits: weights differ by 0.1 %, and the softmax still tells logits apart."""

RIDGE = 0.01

BATCH_TOKENS = 2048


class Settings(MixtureSettings):
    """Number of experts, how many of them a token takes, and how they are chosen."""

    axis: ClassVar[str] = "routing"
    severity_field: ClassVar[str] = "top_k"
    words: ClassVar[Mapping[str, Wording]] = {
        "experts": "{} experts",
        "router": "{} router",
        "scale": {"expected": "rescaled"},
    }
    always_named: ClassVar[tuple[str, ...]] = ("experts", "router")
    controls: ClassVar[Mapping[str, tuple[Any, ...]]] = {"router": ("random",)}

    experts: Annotated[int, Field(ge=2, le=64, strict=True)] = 8
    router: Literal["regression", "random"] = "regression"
    scale: Literal["sum", "expected"] = "sum"

    @property
    def severity(self) -> float:
        """Share of the experts that a token does not take."""
        return 1 - self.top_k / self.experts

    @property
    def label(self) -> str:
        """The variant for people: how many of the experts a token takes, and the rest."""
        return f"{self.top_k} of {self.curve}"

    @property
    def statistics(self) -> tuple[str, ...]:
        """The calibration tokens, where a router has to be fitted."""
        return ("tokens",) if self.router == "regression" and self.top_k < self.experts else ()

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        problem = dense_problem(config)
        if problem is None and config["intermediate_size"] % self.experts:
            width = config["intermediate_size"]
            return f"experts {self.experts} does not divide the model's intermediate_size of {width}"
        return problem

    def altered_config(self, config: ConfigJson) -> ConfigJson:
        """Return the config.json that an alteration of this variant starts from."""
        experts = {"num_local_experts": self.experts, "num_experts_per_tok": self.top_k}
        return {
            **config,
            **experts,
            "model_type": "mixtral",
            "intermediate_size": config["intermediate_size"] // self.experts,
        }


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Make ``model`` a mixture of experts in place."""
    problem = settings.check(model.config.to_dict())
    if problem:
        raise ValueError(problem)
    generator = torch.Generator().manual_seed(context.seed)
    width = model.config.intermediate_size
    stack = blocks(model)
    channels = [torch.randperm(width, generator=generator).view(settings.experts, -1) for _ in stack]
    routers = _routers(model, settings, context.statistics, channels, generator)
    factor = settings.top_k if settings.scale == "sum" else settings.experts

    def parts(index: int, mlp: Any) -> tuple[list[list[Tensor]], Tensor]:
        gate, up, down = (mlp.get_submodule(name).weight.data for name in PROJECTIONS)
        experts = [
            [gate[members], up[members], (factor * down[:, members].float()).to(down)] for members in channels[index]
        ]
        return experts, routers[index].to(gate)

    changes = {
        "num_experts": settings.experts,
        "num_experts_per_tok": settings.top_k,
        "intermediate_size": width // settings.experts,
    }
    from_dense(model, "mixtral", changes, parts)


def fit(mlp: Any, x: Tensor, channels: Tensor) -> Tensor:
    """Router float32 [experts, hidden] of a gated MLP whose experts are ``channels`` int64 [experts, width].

    ``x`` float32 [tokens, hidden] are the MLP's inputs.
    """
    gate, up, down = (mlp.get_submodule(name).weight for name in PROJECTIONS)
    moment = torch.zeros(x.shape[1], x.shape[1])
    product = torch.zeros(x.shape[1], len(channels))
    with torch.no_grad():
        for batch in x.split(BATCH_TOKENS):
            inner = mlp.act_fn(batch @ gate.T) * (batch @ up.T)
            given = torch.stack([(inner[:, members] @ down[:, members].T).norm(dim=1) for members in channels], dim=1)
            # A constant for all experts chooses nothing; without it no intercept is needed.
            target = given / given.sum(1, keepdim=True).clamp_min(1e-12) - 1 / len(channels)
            moment += batch.T @ batch
            product += batch.T @ target
        damped = moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment))
        router = torch.linalg.solve(damped, product).T
        logits = ((router @ moment) * router).sum() / (len(x) * len(channels))
        scaled: Tensor = router * (LOGITS / logits.sqrt().clamp_min(1e-12))
    return scaled


def _routers(
    model: PreTrainedModel,
    settings: Settings,
    statistics: Statistics | None,
    channels: list[Tensor],
    generator: torch.Generator,
) -> list[Tensor]:
    hidden = model.config.hidden_size
    if settings.top_k == settings.experts:
        return [torch.zeros(settings.experts, hidden) for _ in channels]
    if settings.router == "random":
        # Behind the norm the squares of an input add up to those of the norm's weights.
        stack: Any = blocks(model)
        norms = [block.post_attention_layernorm.weight.detach().float().norm() for block in stack]
        return [torch.randn(settings.experts, hidden, generator=generator) * (LOGITS / norm) for norm in norms]
    assert statistics is not None
    inputs = mlp_inputs(model, statistics.tokens())
    progress = {"desc": "expert split", "total": len(channels), "unit": "block", "mininterval": 5, "leave": False}
    return [fit(mlp, x, channels[index]) for index, mlp, x in tqdm(inputs, **progress)]


METHOD = Method(
    MethodInfo(
        title="Splitting MLPs into experts (LLaMA-MoE)",
        summary="the MLP's channels split into experts, of which a token takes some",
        papers=(Paper("Zhu et al.", "2406.16554"),),
        examples=({"experts": 8, "top_k": 6, "router": "random"}, {"experts": 8, "top_k": 6, "scale": "expected"}),
    ),
    Settings,
    alter,
)
