"""Memory that a model takes while it reads a prompt, decodes, or trains: a formula of its config.json.

    M = parameters + cache + activations + gradients + optimizer

as transformers computes it, with attention that does not store all of its scores (SDPA). With B prompts of S tokens,
T = B S, L blocks, width d, attention of h numbers a token and k for keys, MLPs of m channels, a vocabulary of V:

- cache: ``2 L k T`` numbers (arXiv 2503.23924: ``B S (L H P 2)``). Decoding copies a layer's keys or values at a time.
- activations of a prompt: the most that is alive at once. In the MLP ``(4 d + 3 m) T``, or ``(4 d + 2 m) T`` without a
  gate: embeddings, what entered the block, the residual, the norm's output, and three (two) times the channels. In
  attention ``3 d + max(4 h, 2 h + 3 k)``: what turns queries and keys, less the cache that is not there yet. Logits are
  those of the last token.
- activations of a training: what a block keeps for its gradient. RMSNorm keeps ``3 d``, LayerNorm ``2 d``, attention
  ``2 h + 2 k``, a gated MLP ``4 m``, one with ReLU ``m``, with GELU ``2 m``. The loss has at its peak ``4 V T``: logits
  and their softmax, and the gradients of both.
- gradients are as large as the parameters, AdamW's two moments twice as large. Gradients appear while activations go,
  so that the peak is the larger of both; where they are added up over several batches, it is their sum.

Of families it has those whose peaks were measured against it: ``FAMILIES``. Buffers and what a process needs besides
are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GATED = ("llama", "mistral", "qwen2")
"""Families with RMSNorm, rotary positions and gated MLPs."""

FAMILIES = (*GATED, "opt")
"""``model_type`` of the families that the formula is for."""

MOMENTS = 2
"""Numbers that AdamW keeps for each parameter."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model: ``attention`` and ``cached`` are numbers a token of queries and of keys, ``rotary`` a head's.

    ``kept``: numbers a token that a block keeps for its gradient, ``kept_last``: the last norm. ``parameters``: of all,
    ``largest``: of the largest matrix.
    """

    blocks: int
    width: int
    attention: int
    cached: int
    channels: int
    vocabulary: int
    rotary: int
    is_gated: bool
    kept: int
    kept_last: int
    parameters: int
    largest: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes | None:
        """Read a config.json; None for a family that the formula does not know."""
        family = config.get("model_type")
        if family not in FAMILIES or "hidden_size" not in config:
            return None
        blocks, d, heads, V = (
            int(config[key]) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
        )
        head = int(config.get("head_dim") or d // heads)
        h, k = heads * head, int(config.get("num_key_value_heads") or heads) * head
        tables = 1 if config.get("tie_word_embeddings", family == "opt") else 2
        if family == "opt":
            if config.get("word_embed_proj_dim", d) != d or not config.get("do_layer_norm_before", True):
                return None
            m = int(config["ffn_dim"])
            places = int(config["max_position_embeddings"]) + 2
            # Matrices, their biases, and two norms with a bias.
            block = 4 * d * (d + 1) + 2 * d * m + m + d + 4 * d
            parameters = blocks * block + (tables * V + places) * d + 2 * d
            activation = m if config.get("activation_function", "relu") == "relu" else 2 * m
            kept = 2 * (2 * d + 2) + 2 * h + 2 * k + heads + activation
            return cls(blocks, d, h, k, m, V, 0, False, kept, 2 * d, parameters, max(V, places, m) * d)
        m = int(config["intermediate_size"])
        biases = h + 2 * k if family == "qwen2" else 0
        block = 2 * d * h + 2 * d * k + 3 * d * m + 2 * d + biases
        kept = 2 * (3 * d + 1) + 2 * h + 2 * k + heads + 4 * m
        return cls(blocks, d, h, k, m, V, head, True, kept, 3 * d, blocks * block + tables * V * d + d, max(V, m) * d)


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for, and at the ``peak``, which is no sum: gradients appear while activations go."""

    parameters: int
    cache: int
    activations: int
    gradients: int
    optimizer: int
    peak: int


def cache_bytes(sizes: Sizes, batch: int, length: int, element: int) -> int:
    """Return the bytes of keys and values of ``batch`` texts of ``length`` tokens, ``element`` bytes a number."""
    return 2 * element * batch * length * sizes.blocks * sizes.cached


def prefill(
    sizes: Sizes, batch: int, length: int, element: int, weights: int | None = None, is_scored: bool = False
) -> Memory:
    """Return the memory of reading ``batch`` prompts of ``length`` tokens, ``element`` bytes a number.

    ``weights``: bytes of the weights, where they are not ``element`` bytes a parameter. ``is_scored``: logits of every
    token are computed, not of the last alone.
    """
    d, h, k, m = sizes.width, sizes.attention, sizes.cached, sizes.channels
    # Of a single block the embeddings are what enters it.
    streams = (3 if sizes.blocks > 1 else 2) * d
    mlp = streams + d + (3 if sizes.is_gated else 2) * m
    attention = streams + (max(4 * h, 2 * h + 3 * k) if sizes.is_gated else 2 * h)
    logits = d + (sizes.vocabulary if is_scored else 0)
    # Cosines and sines of positions are of one prompt; its places are whole numbers of 8 bytes.
    positions = length * (2 * sizes.rotary * element + 8)
    activations = element * batch * length * max(mlp, attention, logits) + positions
    return _without_training(sizes, cache_bytes(sizes, batch, length, element), activations, element, weights)


def decoding(sizes: Sizes, batch: int, length: int, element: int, weights: int | None = None) -> Memory:
    """Return the memory of decoding the token ``length`` of each of ``batch`` texts, ``element`` bytes a number."""
    d, k = sizes.width, sizes.cached
    mlp = 4 * d + (3 if sizes.is_gated else 2) * sizes.channels
    copying = length * k + 4 * d + 2 * k
    activations = element * batch * max(copying, mlp, d + sizes.vocabulary)
    return _without_training(sizes, cache_bytes(sizes, batch, length, element), activations, element, weights)


def training(sizes: Sizes, batch: int, length: int, accumulates: bool = False) -> Memory:
    """Return the memory of a step of AdamW in float32 on ``batch`` texts of ``length`` tokens, without checkpointing.

    ``accumulates``: gradients of batches before are there already.
    """
    element, T = 4, batch * length
    kept = sizes.blocks * sizes.kept + sizes.kept_last
    activations = element * T * (kept + 4 * sizes.vocabulary) + length * (2 * sizes.rotary * element + 8)
    parameters = gradients = element * sizes.parameters
    optimizer = MOMENTS * parameters
    # A step of the optimizer has two copies of a matrix; the head's gradient is there before a block's.
    head = element * (T * (kept + 2 * sizes.vocabulary) + sizes.width * sizes.vocabulary)
    ending = gradients + 2 * element * sizes.largest
    moving = max(activations, head) + gradients if accumulates else max(activations, head, ending)
    return Memory(parameters, 0, activations, gradients, optimizer, parameters + optimizer + moving)


def phases(sizes: Sizes, batch: int, length: int, element: int = 2, weights: int | None = None) -> dict[str, Memory]:
    """Return the memory of each phase by name: ``prefill`` and ``decoding`` with ``element`` bytes a number.

    ``training`` is in float32, and left out where ``weights`` says that they are stored in another way.
    """
    taken = {
        "prefill": prefill(sizes, batch, length, element, weights),
        "decoding": decoding(sizes, batch, length, element, weights),
    }
    return taken if weights is not None else {**taken, "training": training(sizes, batch, length)}


def _without_training(sizes: Sizes, cache: int, activations: int, element: int, weights: int | None) -> Memory:
    parameters = element * sizes.parameters if weights is None else weights
    return Memory(parameters, cache, activations, 0, 0, parameters + cache + activations)
