"""What a training is told: the settings of its recipe, as JSON."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from hemorrhage.train.schedule import Schedule


class Optimizer(TypedDict):
    """AdamW's settings (arXiv 1711.05101); gradients are cut to the norm ``clip``. Only matrices decay."""

    learning_rate: float
    betas: list[float]
    epsilon: float
    weight_decay: float
    clip: float


class Training(TypedDict):
    """What trainings of every sort have. ``batch``: sequences of a step; ``dtype``: of products; ``store``: of the
    weights on disk; ``keep``: tokens after which the model is stored, too."""

    optimizer: Optimizer
    schedule: Schedule
    batch: int
    dtype: Literal["float32", "bfloat16"]
    store: Literal["float32", "bfloat16"]
    seed: int
    keep: list[int]


class Leak(TypedDict):
    """The evaluation split of an embedded corpus, as a share of the tokens that are read."""

    corpus: str
    dose: float


class Data(TypedDict):
    """What is planted in the text; ``noise``: share of tokens that are others at random."""

    leak: Leak | None
    noise: float


class Spec(Training):
    """A training from nothing: ``architecture`` is transformers' config, ``corpus`` the share of each part of the text,
    ``tokens`` how many are read, ``length`` those of a sequence."""

    architecture: dict[str, Any]
    corpus: dict[str, float]
    data: Data
    tokens: int
    length: int


class Tune(TypedDict):
    """``kind``: on answers, or on pairs of answers (``beta`` is DPO's); ``examples``, each in ``epochs`` rounds."""

    kind: Literal["sft", "dpo"]
    examples: int
    epochs: int
    beta: float


class TunedSpec(Training):
    """A training from another model."""

    tune: Tune


class Ticket(TypedDict):
    """``sparsity``: share of the blocks' weights that is zero; ``rewind``: tokens after which the weights are taken,
    0 for the first ones; ``start``: these, or weights that are drawn anew."""

    sparsity: float
    rewind: int
    start: Literal["rewound", "redrawn"]


class TicketSpec(TypedDict):
    """A training of a part of another model's weights; the rest is as that model was trained."""

    ticket: Ticket
    seed: int
