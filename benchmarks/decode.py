"""Speed of decoding: ours against transformers' ``generate`` in one process, and what a token costs as texts grow.

    OMP_NUM_THREADS=1 python -m benchmarks.decode [--base DIR] [--rounds 3]

First the sweep's greedy path and ``generate`` in turns, on one batch and with a cache; the sweep reads the prompts
once for all strategies, so it is measured with and without that. Then the rate of every other search. Then, on a
model of random weights and 2304 positions, milliseconds per token of one text: the n-gram penalty of FSD-d alone
and the whole search, the penalty of vector FSD alone, which is a product with all that was written, and greedy
search. Last, rows and tokens of the forward passes of contrastive search. CPU seconds of this process. Without
``--base`` the random model serves for all of it.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hemorrhage.decode.generation import generate, read, special_tokens
from hemorrhage.decode.strategies import contrastive_search, fsd, fsd_d, greedy
from hemorrhage.models.checkpoint import load

BATCH, PROMPT, NEW = 12, 64, 48
LENGTHS = (128, 256, 512, 1024, 2048)
SEARCHES = ("beam", "diverse_beam", "contrastive_search", "contrastive_decoding", "dola", "fsd", "fsd_d", "assisted")


def random_model() -> Any:
    """Make a Llama of random weights with room for 2048 tokens and a prompt."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2304,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds of ``work``."""
    start = time.process_time()
    work()
    return time.process_time() - start


def rates(model: Any, rounds: int) -> None:
    """Tokens per second of one batch, all paths in turns."""
    ids = torch.randint(10, model.config.vocab_size, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    plain = {"max_new_tokens": NEW, "do_sample": False, **special_tokens(model)}
    reading = read(model, ids, mask)
    paths: dict[str, Callable[[], Any]] = {
        "generate": lambda: model.generate(ids, attention_mask=mask, **plain)[:, PROMPT:],
        "greedy": lambda: generate(greedy, model, ids, mask, NEW, greedy.Settings(), 0),
        "greedy, prompts read": lambda: generate(greedy, model, ids, mask, NEW, greedy.Settings(), 0, reading),
    }
    for name in SEARCHES:
        module: Any = importlib.import_module(f"hemorrhage.decode.strategies.{name}")
        paths[name] = functools.partial(generate, module, model, ids, mask, NEW, module.Settings(), 0)
    assert torch.equal(paths["generate"](), paths["greedy"]())
    spent: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds):
        # The searches only show their size: one round is enough.
        for name in list(paths)[: None if number == 0 else 3]:
            spent[name].append(timed(paths[name]))
    for name, found in spent.items():
        ratio = median(theirs / ours for ours, theirs in zip(found, spent["generate"], strict=False))
        print(f"{name:22} {BATCH * NEW / median(found):9.1f} tokens/s   {ratio:5.2f} of generate", flush=True)


def growth(model: Any) -> None:
    """Milliseconds per token at the end of texts of ``LENGTHS`` tokens."""
    tokens = torch.randint(10, 512, (1, max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    scores = torch.randn(max(LENGTHS), 512, generator=torch.Generator().manual_seed(2))
    # As wide as those of the default model.
    states = torch.randn(1, max(LENGTHS), 576, generator=torch.Generator().manual_seed(3))
    print(
        f"{'length':>8} {'FSD-d penalty':>14} {'FSD penalty':>12} {'FSD-d':>8} {'FSD':>8} {'greedy':>8}   ms per token"
    )
    for length in LENGTHS:
        # A LogitsProcessor declares LongTensor and FloatTensor, which no function of torch returns.
        discrete: Any = fsd_d.NGramPenalty()
        # Text is read as it is written, the last 64 tokens of it one by one.
        discrete(tokens[:, : length - 64], scores[:1])

        def ngrams(discrete: Any = discrete, length: int = length) -> None:
            for at in range(length - 64, length):
                discrete(tokens[:, :at], scores[at : at + 1])

        table = timed(ngrams)
        anti = fsd.AntiModel(2, states[:, : length - 64], length)
        mask = torch.ones(1, length, dtype=torch.long)

        def vectors(anti: fsd.AntiModel = anti, length: int = length, mask: torch.Tensor = mask) -> None:
            for at in range(length - 64, length):
                anti.penalty(tokens[:, :at], mask[:, :at], scores[at].topk(3).indices[None])
                anti.append(states[:, at : at + 1])

        products = timed(vectors)
        whole = {}
        ids = tokens[:, : length - 32]
        for module in (fsd_d, fsd, greedy):
            # Everything but the reading of the prompt, which is the same for all.
            reading = read(model, ids, torch.ones_like(ids))
            chosen: Any = module
            search = functools.partial(
                generate, chosen, model, ids, torch.ones_like(ids), 32, chosen.Settings(), 0, reading
            )
            whole[module] = timed(search)
        row = [1e3 * table / 64, 1e3 * products / 64, *(1e3 * seconds / 32 for seconds in whole.values())]
        print(f"{length:8} {row[0]:14.3f} {row[1]:12.3f} {row[2]:8.2f} {row[3]:8.2f} {row[4]:8.2f}", flush=True)


def passes(model: Any) -> None:
    """Shapes of the forward passes of contrastive search with 4 candidates."""
    shapes: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    ids = torch.randint(10, 500, (3, 16), generator=torch.Generator().manual_seed(4))
    settings = contrastive_search.Settings(k=4)
    generate(contrastive_search, model, ids, torch.ones_like(ids), 20, settings, 0)
    hook.remove()
    assert shapes == [(3, 16), *[(12, 1)] * 20]
    print(f"contrastive search, 3 texts, 4 candidates, 20 tokens: one pass over {shapes[0]}, then 20 over {shapes[1]}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--base", type=Path, help="folder of a model")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of greedy search and generate")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = load(chosen.base) if chosen.base else random_model()
    # No end of sequence: every run makes the same number of tokens.
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    rates(model, chosen.rounds)
    roomy = random_model()
    roomy.generation_config.eos_token_id = roomy.config.eos_token_id = None
    growth(roomy)
    passes(roomy)


if __name__ == "__main__":
    main()
