"""Diagnostics inside the network: attention, the residual stream, the cascade of errors, the routing of experts.

The model goes through a few windows block by block. A block's values are in the row of its index: those of states
are of the state that leaves it. Where two models are compared, a block of the variant is compared with its source, the
block of the base that it was made from (``source``): the states x_1 .. that the variant's blocks should leave are those
that their sources leave in the base, and x_{l-1}, what the block before should leave, is a block's clean input. Where
blocks were taken out the loss thereby appears in the block after the gap, and in expanded models a silent copy has no
error.

A model whose residual stream lies in another basis (SliceGPT, rotation of the network) has no error there, only
what no rotation changes: CKA, attention and the logit lens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hemorrhage.evaluate.diagnostics import attention, cascade, residual, routing
from hemorrhage.models import blockwise
from hemorrhage.models.blocks import blocks

LENS_STRIDE = 16
"""Of a window's positions the logit lens looks at every so many, counted from the last."""

METRICS = {
    "attention_entropy": "entropy of an attention row over ln i, mean over rows: 0 one token, 1 all alike",
    "attention_sink": "attention mass on the first token, mean over rows",
    "attention_distance": "mean distance of what attention reads, tokens",
    "attention_js": "Jensen-Shannon divergence between base and variant rows of a head, nats (0 to ln 2)",
    "attention_js_mean_map": "the same between the maps' means over heads",
    "relative_error": "‖x - x'‖ / ‖x‖ of the state behind the block, mean over tokens",
    "cosine": "cosine between base and variant state, mean over tokens",
    "sqnr": "10 log10(var x / var(x - x')) of the state, dB (at most 144.5: rounding of float32)",
    "cka": "linear CKA between base and variant states (unbiased where a window has fewer tokens than channels)",
    "local_error": "relative error behind the block on the base's clean input",
    "local_sqnr": "SQNR of what the block writes on the base's clean input, dB",
    "inherited_error": "relative error less the local error; below 0 where they cancel",
    "error_amplification": "relative error behind the block over that before it",
    "embedding_error": "relative error of the state that enters the first block",
    "log_amplification": "mean over blocks of ln(error behind over error before); a cascade above 0",
    "lens_kl": "KL(base's final prediction ‖ prediction from this state), nats",
    "block_influence": "1 - cosine between the states before and behind the block",
    "angular_distance": "angle between the states before and behind the block, over π",
    "norm_growth": "norm of the state behind the block over that before it",
    "write_norm": "norm of what the block writes over that of the state before it",
    "effective_rank": "exp of the entropy of the state's squared singular values",
    "direct_effect": "what the block's write adds by itself to the right token's centred logit",
    "total_effect": "what the right token's centred logit loses without the block",
    "self_repair": "1 - total over direct effect: the share that later blocks make up for",
    "routing_entropy": "entropy of the router's softmax over ln(experts), mean over tokens",
    "routing_agreement": "share of the experts that the base chose which the variant chose too",
    "expert_load_cv": "standard deviation over mean of the tokens that an expert gets, all windows together",
    "experts_unused": "share of the experts that no token was routed to, all windows together",
    "experts_dropped": "share of the base's experts that are gone",
}
"""Metric -> its definition for readers."""

DIAGNOSTICS = pa.DataFrameSchema(
    {
        "layer": pa.Column("int64", pa.Check.ge(-1)),
        "head": pa.Column("int64", pa.Check.ge(-1)),
        "window": pa.Column("int64", pa.Check.ge(-1)),
        "metric": pa.Column(str, pa.Check.isin(list(METRICS))),
        "value": pa.Column("float64", pa.Check(lambda value: value.abs() < float("inf"), name="finite")),
    },
    strict=True,
    unique=["layer", "head", "window", "metric"],
)
"""``diagnostics.parquet``: layer -1 is the whole model, head -1 the layer, window -1 all windows together."""


class Rows:
    """Values by layer, head, window and metric."""

    def __init__(self) -> None:
        """Empty."""
        self._values: list[tuple[int, str, bool, np.ndarray]] = []

    def add(self, layer: int, values: dict[str, Tensor], together: bool = False) -> None:
        """Add ``values`` of the n windows, [n] or [n, heads], or [1] of all ``together``; NaN has no row."""
        for metric, value in values.items():
            self._values.append((layer, metric, together, value.double().cpu().numpy()))

    def table(self) -> pd.DataFrame:
        """Return all of them, with the columns of DIAGNOSTICS."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in DIAGNOSTICS.columns}
        for layer, metric, together, value in self._values:
            positions = np.indices(value.shape).reshape(value.ndim, -1)
            none = np.full(value.size, -1)
            columns["layer"].append(np.full(value.size, layer))
            columns["head"].append(positions[1] if value.ndim == 2 else none)
            columns["window"].append(none if together else positions[0])
            columns["metric"].append(np.full(value.size, metric, dtype=object))
            columns["value"].append(value.ravel())
        table = pd.DataFrame({name: np.concatenate(pieces) for name, pieces in columns.items()})
        return DIAGNOSTICS.validate(table.dropna().reset_index(drop=True))


def protocol(windows: int, window: int) -> str:
    """Return all that the diagnostics' values depend on but model and text, as one string."""
    return f"windows={windows} window={window} lens_stride={LENS_STRIDE} dtype=float32"


def base_side(model: PreTrainedModel, windows: Tensor) -> dict[str, Tensor]:
    """Return the base's side of a comparison, on the processor, for ``windows`` int32 [n, T] of two tokens or more.

    ``tokens``; ``states`` float32 [blocks + 1, n, T, d], which enter each block and leave the last; ``lens`` float32
    [n, positions, vocabulary], final log-probabilities; ``attention.<block>`` float32 [n, heads, T(T+1)/2], exact, the
    triangles of evaluate.diagnostics.attention; of blocks with experts ``routing.<block>`` int64 [n, T, k], the chosen
    ones, and ``experts.<block>`` int64 [1], their number. Raises ValueError for states that are not finite.
    """
    if windows.shape[1] < 2:
        raise ValueError(f"windows of {windows.shape[1]} token: the diagnostics need 2 or more")
    tokens = windows.long().to(model.device)
    side: dict[str, Tensor] = {"tokens": windows}
    with torch.no_grad(), attention.record_attention(model) as maps, routing.record_routing(model) as routes:
        (state,), arguments = blockwise.embed(model, (tokens,))
        states = [state]
        for index, block in enumerate(blocks(model)):
            states.append(_run(block, index, states[-1], arguments[index], maps, routes))
            if maps:
                side[f"attention.{index}"] = attention.triangle(maps[0])
            if routes:
                logits, chosen = routes[0]
                side[f"routing.{index}"] = chosen.view(*tokens.shape, -1)
                side[f"experts.{index}"] = torch.tensor([logits.shape[-1]])
        (final,) = blockwise.final_norm(model, (tokens,), states[-1:])
        predicting = final[:, _positions(tokens.shape[1])]
        log_p = cascade.log_probabilities(model, predicting.reshape(-1, predicting.shape[-1]))
        side["lens"] = log_p.view(*predicting.shape[:2], -1)
    side["states"] = torch.stack(states)
    return {name: value.cpu().contiguous() for name, value in side.items()}


def measure(
    model: PreTrainedModel,
    of_base: dict[str, Tensor],
    source: list[int | None] | None,
    ablate: bool,
    gaps: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Compare ``model`` with the base's ``base_side``: return a table DIAGNOSTICS of the metrics METRICS.

    ``source``: the base's block that each block was made from, None for one that has none. Without it blocks are those
    of the base in their order, or where their number differs only what needs no base is measured. ``ablate``
    adds self-repair, at the cost of a pass for every two blocks. Where a model lacks what a metric needs, the reason
    goes into ``gaps``, without which it is raised. Raises ValueError for states that are not finite, a ``source``
    that does not fit, and a vocabulary that is not the base's.
    """
    of_base = {name: value.to(model.device) for name, value in of_base.items()}
    tokens, base_states, log_p = of_base["tokens"].long(), of_base["states"], of_base["lens"]
    stack = blocks(model)
    source = _check_source(source, len(stack), len(base_states) - 1)
    head: Any = model.get_output_embeddings()
    vocabulary = head.weight.shape[0]
    if vocabulary != log_p.shape[-1]:
        raise ValueError(f"a vocabulary of {vocabulary}, and the base's has {log_p.shape[-1]}")
    positions = _positions(tokens.shape[1])
    rows = Rows()
    with torch.no_grad(), attention.record_attention(model) as maps, routing.record_routing(model) as routes:
        (state,), arguments = blockwise.embed(model, (tokens,))
        comparison = _Comparison(base_states[0], None)
        if _same_basis(base_states[0], state):
            comparison.error = cascade.relative_error(base_states[0], state)
            rows.add(-1, {"embedding_error": comparison.error})
        seen_by_lens: list[Tensor] = []
        for index, block in enumerate(stack):
            run = functools.partial(_run, block, index, arguments=arguments[index], maps=maps, routes=routes)
            after = run(state)
            of_source = source[index]
            if maps:
                rows.add(index, _attention(maps[0], of_base.get(f"attention.{of_source}"), tokens.shape[1]))
            if routes:
                _add_routing(rows, index, routes[0], tokens, of_base, of_source)
            handed_on = residual.carry_over(block, state)
            rows.add(index, residual.stream(handed_on, after) | {"effective_rank": residual.effective_rank(after)})
            if of_source is not None:
                rows.add(index, comparison.advance(base_states[of_source + 1], after, run))
            seen_by_lens = [residual.carry_over(block, earlier) for earlier in seen_by_lens] + [after[:, positions]]
            state = after
        rows.add(-1, comparison.amplification())
        for index, value in enumerate(cascade.lens(model, tokens, seen_by_lens, log_p)):
            rows.add(index, {"lens_kl": value})
    _note_attention(model, of_base, gaps)
    for index, effect in enumerate(_repair(model, tokens, gaps) if ablate else ()):
        rows.add(index, effect)
    return rows.table()


@dataclass
class _Comparison:
    """The base's clean state, and the variant's relative error, None where the bases differ, from block to block."""

    clean: Tensor
    error: Tensor | None
    logs: list[Tensor] = field(default_factory=list)

    def advance(self, wanted: Tensor, after: Tensor, run: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the metrics of a block that should leave ``wanted`` and left ``after``; ``run`` computes it."""
        values = {"cka": cascade.cka(wanted, after)}
        if self.error is not None:
            compared = _cascade(self.clean, wanted, after, run(self.clean), self.error)
            self.error = compared["relative_error"]
            self.logs.append(compared["error_amplification"].log())
            values |= compared
        self.clean = wanted
        return values

    def amplification(self) -> dict[str, Tensor]:
        """Return the mean over blocks of the logarithm of the amplification, where there is one."""
        if not self.logs:
            return {}
        # Errors of zero have no logarithm.
        each = torch.stack(self.logs)
        return {"log_amplification": torch.where(each.isfinite(), each, torch.nan).nanmean(0)}


def _note_attention(model: PreTrainedModel, of_base: dict[str, Tensor], gaps: dict[str, str] | None) -> None:
    """Note the gap of a model that attends and returns no attention weights."""
    if gaps is not None and not any(name.startswith("attention.") for name in of_base) and _attends(model):
        gaps["attention"] = f"{type(model).__name__} returns no attention weights"


def _repair(model: PreTrainedModel, tokens: Tensor, gaps: dict[str, str] | None) -> list[dict[str, Tensor]]:
    """Return the effects of each block; none, and a gap, where the model does not allow it."""
    try:
        return residual.repair(model, tokens)
    except ValueError as error:
        if gaps is None:
            raise
        gaps["self_repair"] = str(error)
        return []


def _attends(model: PreTrainedModel) -> bool:
    return any(attention.attention_layers(block) for block in blocks(model))


def _run(
    block: nn.Module,
    index: int,
    states: Tensor,
    arguments: blockwise.BlockArguments,
    maps: list[Tensor],
    routes: list[tuple[Tensor, Tensor]],
) -> Tensor:
    """Run ``block``; afterwards ``maps`` and ``routes`` hold what was recorded of this pass alone."""
    maps.clear()
    routes.clear()
    with blockwise.in_float32(block):
        after = blockwise.run_block(block, states, arguments)
    if not after.isfinite().all():
        raise ValueError(f"block {index}: the states that leave it are not finite")
    return after


def _attention(maps: Tensor, of_base: Tensor | None, length: int) -> dict[str, Tensor]:
    """Return the metrics of maps [n, heads, T, T]; ``of_base``: the source block's triangles, maybe of other heads."""
    triangles = attention.triangle(maps)
    values = attention.shape(triangles, length)
    if of_base is not None:
        if of_base.shape == triangles.shape:
            values["attention_js"] = attention.divergence(of_base, triangles, length)
        values["attention_js_mean_map"] = attention.divergence(of_base.mean(1), triangles.mean(1), length)
    return values


def _cascade(clean: Tensor, wanted: Tensor, after: Tensor, alone: Tensor, before: Tensor) -> dict[str, Tensor]:
    """Return a block's errors: ``wanted`` and ``after`` leave it in base and variant, ``alone`` on the input ``clean``.

    ``before`` [n] is the relative error of what entered it in the variant.
    """
    error, local = cascade.relative_error(wanted, after), cascade.relative_error(wanted, alone)
    return {
        "relative_error": error,
        "cosine": cascade.cosine(wanted, after),
        "sqnr": cascade.sqnr(wanted, wanted - after),
        "local_error": local,
        "local_sqnr": cascade.sqnr(wanted - clean, wanted - alone),
        "inherited_error": error - local,
        "error_amplification": torch.where(before > 0, error / before, torch.nan),
    }


def _add_routing(
    rows: Rows,
    index: int,
    route: tuple[Tensor, Tensor],
    tokens: Tensor,
    of_base: dict[str, Tensor],
    of_source: int | None,
) -> None:
    logits, chosen = (value.view(*tokens.shape, -1) for value in route)
    experts = logits.shape[-1]
    rows.add(index, {"routing_entropy": routing.uncertainty(logits)})
    rows.add(index, routing.load(chosen, experts), together=True)
    if f"routing.{of_source}" in of_base:
        before = int(of_base[f"experts.{of_source}"])
        rows.add(index, {"experts_dropped": torch.tensor([1 - experts / before])}, together=True)
        # Where some are gone, the others have other numbers.
        if experts == before:
            rows.add(index, {"routing_agreement": routing.agreement(chosen, of_base[f"routing.{of_source}"])})


def _same_basis(of_base: Tensor, state: Tensor) -> bool:
    """Return whether embeddings [n, T, d] can be compared: not where their width or their basis is another.

    A rotation leaves every inner product as it was and the vectors nowhere near; damage does not.
    """
    if of_base.shape != state.shape:
        return False
    of_base_gram, gram = (x.flatten(0, 1) @ x.flatten(0, 1).T for x in (of_base, state))
    is_far = (of_base - state).norm() > 0.9 * of_base.norm()
    rotated = is_far and (of_base_gram - gram).norm() < 0.3 * of_base_gram.norm()
    return not rotated


def _positions(length: int) -> slice:
    """Return the positions of a window of ``length`` that the logit lens looks at; the last is one of them."""
    return slice((length - 1) % LENS_STRIDE, None, LENS_STRIDE)


def _check_source(source: list[int | None] | None, number: int, of_base: int) -> list[int | None]:
    if source is None:
        return list(range(number)) if number == of_base else [None] * number
    if len(source) != number or any(each is not None and not 0 <= each < of_base for each in source):
        raise ValueError(f"blocks {source}: {number} indices among the base's {of_base} blocks, or null, are needed")
    return source
