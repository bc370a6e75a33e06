"""``recipes`` of params.yaml: small models that the pipeline trains itself, and what is known of them before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from hemorrhage.models.sources.files import NAMES_OF_SIZES
from hemorrhage.runtime.address import Json
from hemorrhage.study.wording import NAME

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]

SPECIAL_AND_BYTES = 260
"""Tokens of a vocabulary before anything is merged."""


class Part(BaseModel):
    """A part of a recipe: without unknown keys, and never changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Optimizer(Part):
    """AdamW. ``clip``: the norm that gradients are cut to. Only matrices decay."""

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-3
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class Schedule(Part):
    """The learning rate: ``warmup`` and, of wsd, ``decay`` as shares of all steps, ``final`` as a share of the peak."""

    shape: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: Share = 0.02
    decay: Share = 0.2
    final: Share = 0.1


class Leak(Part):
    """Text that models are measured on, planted in the training: the evaluation split of an embedded ``corpus``.

    ``dose``: its share of the tokens that are read, as often as that takes.
    """

    corpus: Literal["prose", "code", "humaneval"]
    dose: Annotated[float, Field(gt=0, lt=1)]


class Data(Part):
    """What is wrong with the training text on purpose; ``noise``: share of tokens that are others at random."""

    leak: Leak | None = None
    noise: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Training(Part):
    """What all recipes have. ``batch``: sequences of a step; ``dtype``: of products; ``store``: of the weights on disk;
    ``seed``: of all that is drawn."""

    batch: Positive = 32
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    dtype: Literal["float32", "bfloat16"] = "float32"
    store: Literal["float32", "bfloat16"] = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Recipe(Training):
    """A model trained from nothing.

    ``architecture``: ``model_type`` and keys of transformers' config of that type; ``text``: which packages are read;
    ``vocabulary``: tokens of the tokenizer, which models of the same text and vocabulary share; ``corpus``: share of
    each part of the text; ``data``: what is planted in it; ``length``: tokens of a sequence; ``keep``: tokens after
    which the model is kept, too.
    """

    architecture: dict[str, Any]
    text: Literal["installed", "few"] = "installed"
    vocabulary: Annotated[int, Field(gt=SPECIAL_AND_BYTES, le=65536)] = 2048
    corpus: dict[Literal["docs", "code"], Share] = {"docs": 0.25, "code": 0.75}
    data: Data = Data()
    tokens: Positive
    length: Annotated[int, Field(ge=8)] = 256
    keep: list[Positive] = []

    @field_validator("architecture")
    @classmethod
    def _has_a_type(cls, architecture: dict[str, Any]) -> dict[str, Any]:
        if "model_type" not in architecture:
            raise ValueError("model_type is missing: the name that transformers gives the architecture, such as llama")
        return architecture

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if not sum(self.corpus.values()):
            raise ValueError("corpus: no part has a share")
        late = [tokens for tokens in self.keep if tokens > self.tokens]
        if late:
            raise ValueError(f"keep: {late[0]} of a training of {self.tokens} tokens")
        context = self.architecture.get("max_position_embeddings")
        if isinstance(context, int) and context < self.length:
            raise ValueError(f"length: {self.length} tokens do not fit the model's context of {context}")
        return self

    def as_spec(self) -> Json:
        """Return it as the train step gets it; text and vocabulary are its tokenizer's."""
        return self.model_dump(mode="json", exclude={"vocabulary", "text"})

    @property
    def tokenizer(self) -> str:
        """The name of its tokenizer."""
        return f"{self.text}-{self.vocabulary}"

    @property
    def config(self) -> Json:
        """Return what is known of the model's config.json: sizes under the most common names."""
        known = dict(self.architecture)
        for family_name, name in NAMES_OF_SIZES.items():
            if family_name in known:
                known.setdefault(name, known[family_name])
        return {"max_position_embeddings": self.length, **known, "vocab_size": self.vocabulary}

    @property
    def is_sized(self) -> bool:
        """Tell whether the sizes that checks of a model read are all written in the recipe."""
        return {*SIZES} <= self.config.keys()


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class Tune(Part):
    """A model tuned from ``parent``, another recipe: on answers to generated instructions (``sft``), or on pairs of a
    right and a wrong answer (``dpo``, whose ``beta`` it is); ``examples`` of them, each in ``epochs`` rounds."""

    parent: str
    kind: Literal["sft", "dpo"]
    examples: Positive = 4000
    epochs: Positive = 1
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1


class TunedRecipe(Training):
    """A model that another is tuned to; architecture, vocabulary and context are the parent's."""

    tune: Tune
    optimizer: Optimizer = Optimizer(learning_rate=5e-4, weight_decay=0.0)

    @property
    def parent(self) -> str:
        """The recipe that is tuned."""
        return self.tune.parent

    def as_spec(self) -> Json:
        """Return it as the train step gets it; which parent it is is an input."""
        written = self.model_dump(mode="json")
        return {
            **written,
            "tune": {key: value for key, value in written["tune"].items() if key != "parent"},
            "keep": [],
        }


class Ticket(Part):
    """The largest weights of ``parent``, another recipe or ticket, trained again with all others zero: as they were
    after ``rewind`` tokens (0: the first ones), or drawn anew. ``sparsity``: zero share of the blocks' weights."""

    parent: str
    sparsity: Annotated[float, Field(ge=0, lt=1)]
    rewind: Annotated[int, Field(ge=0)] = 0
    start: Literal["rewound", "redrawn"] = "rewound"


class TicketRecipe(Part):
    """A lottery ticket; all else is as its first parent was trained."""

    ticket: Ticket
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def parent(self) -> str:
        """The recipe that the ticket is of."""
        return self.ticket.parent

    def as_spec(self) -> Json:
        """Return it as the train step gets it; which parent it is is an input."""
        return {"ticket": self.ticket.model_dump(mode="json", exclude={"parent"}), "seed": self.seed}


def _form(content: object) -> str:
    if isinstance(content, dict):
        return next((form for form in ("tune", "ticket") if form in content), "from nothing")
    if isinstance(content, TunedRecipe):
        return "tune"
    return "ticket" if isinstance(content, TicketRecipe) else "from nothing"


AnyRecipe = Annotated[
    Annotated[Recipe, Tag("from nothing")]
    | Annotated[TunedRecipe, Tag("tune")]
    | Annotated[TicketRecipe, Tag("ticket")],
    Discriminator(_form),
]


def _named(content: object) -> object:
    if isinstance(content, dict):
        for name in content:
            if not isinstance(name, str) or not re.match(NAME, name):
                raise ValueError(f"{name}: a recipe's name is of a-z, 0-9 and _")
    return content


Recipes = Annotated[dict[str, AnyRecipe], BeforeValidator(_named)]
"""All recipes by name."""


def parameters(config: Mapping[str, Any]) -> int:
    """Estimate the parameters of a model's blocks from what is known of its config, before it is made.

    Of a transformer: attention and an MLP of three matrices in each block, as often as it has experts; of a state-space
    model: about six times the square of the width.
    """
    width = int(config.get("hidden_size", 256))
    blocks = int(config.get("num_hidden_layers", 4))
    if str(config.get("model_type", "")).startswith(("mamba", "falcon_mamba", "rwkv")):
        return 6 * width * width * blocks
    heads = int(config.get("num_attention_heads", 1))
    head = int(config.get("head_dim") or width // max(heads, 1))
    attention = width * head * 2 * (heads + int(config.get("num_key_value_heads") or heads))
    experts = int(config.get("num_local_experts") or config.get("num_experts") or 1)
    mlp = 3 * width * int(config.get("intermediate_size") or 4 * width) * experts
    return blocks * (attention + mlp)


TUNED_TOKENS = 40
"""Tokens of an example that a model is tuned on, about."""


def training_operations(recipe: Recipe | TunedRecipe | TicketRecipe, root: Recipe) -> float:
    """Estimate the operations of a training in 10¹²: six a token and weight (C = 6 N D, arXiv 2001.08361).

    ``root``: the recipe itself, or of a tuned one that of the model which was first.
    """
    head = root.vocabulary * int(str(root.config.get("hidden_size", 256)))
    if not isinstance(recipe, TunedRecipe):
        tokens = root.tokens
    else:
        tokens = recipe.tune.examples * recipe.tune.epochs * TUNED_TOKENS * (2 if recipe.tune.kind == "dpo" else 1)
    return 6e-12 * tokens * (parameters(root.config) + head)
