"""vLLM in one process: logits of every prompt token, as the engine's own head computes them.

The engine runs a text as one request, without a cache of an earlier one. What its model returns is kept by a hook, and
``compute_logits`` of that model, which vLLM samples from and takes prompt_logprobs from, is called in tiles. So nothing
is recomputed by other code, and no log-probability goes through Python one by one.

``dtype`` auto is the checkpoint's. Texts are scored without compilation and without CUDA graphs. Speed is measured as
vLLM serves on a GPU, with both, and without on a processor, where compilation needs a compiler and minutes. Requests
are not batched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

for _name, _value in (
    # In this process, so that its model can be reached.
    ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
    # Threads that are bound to cores wait for each other where another program has the core.
    ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("VLLM_LOGGING_LEVEL", "WARNING"),
):
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402  after the variables that vLLM reads
import vllm  # noqa: E402
from transformers import AutoConfig  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.distributed import cleanup_dist_env_and_memory  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

DTYPES = ("auto", "float32")

MOST_BATCH = 8192
"""Tokens that are computed at once, at most; a longer text is computed in several pieces."""

MOST_TILE = 2**25
"""Bytes of logits that are kept at once, about."""

LEAST_CACHE = 2**28
"""Bytes of keys and values, at least."""

SET_THREADS = torch.set_num_threads
"""vLLM replaces it in its own module."""


class Worker:
    """One model on the processor, or on a GPU where there is one."""

    name = "vLLM"
    version = vllm.__version__.partition("+")[0]

    def __init__(self) -> None:
        self.llm: Any = None
        self.model: Any = None
        self.settings: dict[str, Any] = {}
        self.is_compiled = False
        self.states: list[torch.Tensor] = []
        self.vocabulary = self.context = 0

    def load(self, path: str, threads: int, context: int, dtype: str) -> dict[str, object]:
        """Load a folder of Hugging Face."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: one of {', '.join(DTYPES)}")
        SET_THREADS(threads)
        self.context = context
        self.settings = {
            "model": path,
            "dtype": dtype,
            "max_model_len": context,
            "max_num_batched_tokens": min(context, MOST_BATCH),
            "enable_chunked_prefill": context > MOST_BATCH,
            "kv_cache_memory_bytes": cache_bytes(path, context),
        }
        self._start(is_compiled=False)
        # Kernels that are chosen, and do not run here, are found before work.
        self._states(np.zeros(min(2, context - 1), np.int32))
        return {"vocabulary": self.vocabulary, "gives": "logits", "facts": self._facts(threads, context)}

    def _start(self, is_compiled: bool) -> None:
        self.close()
        try:
            self.llm = LLM(
                **self.settings,
                skip_tokenizer_init=True,
                enforce_eager=not is_compiled,
                enable_prefix_caching=False,
                async_scheduling=False,
                max_num_seqs=1,
                disable_log_stats=True,
            )
        except ValueError as error:
            # Pydantic writes lists; one line is sent.
            raise ValueError(" ".join(str(error).split())) from None
        self.is_compiled = is_compiled
        self.vocabulary = self.llm.llm_engine.model_config.get_vocab_size()
        self.llm.apply_model(self._watch)

    def _watch(self, model: Any) -> None:
        self.model = model
        model.register_forward_hook(lambda _module, _arguments, output: self.states.append(output))

    def _facts(self, threads: int, context: int) -> dict[str, str]:
        config = self.llm.llm_engine.vllm_config
        return {
            "model": type(self.model).__name__,
            "torch": torch.__version__,
            "device": device_name(),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "quantization": str(config.model_config.quantization or "none"),
            "cache": str(config.cache_config.cache_dtype),
            "context": str(context),
            "threads": str(threads),
        }

    def score(
        self, tokens: NDArray[np.int32]
    ) -> Iterator[tuple[str, dict[str, object], dict[str, NDArray[np.float32]]]]:
        """Yield logits in tiles; the text is computed at once, or in pieces of MOST_BATCH tokens."""
        self._check(tokens, len(tokens))
        if self.is_compiled:
            self._start(is_compiled=False)
        states, rows = self._states(tokens[:-1]), max(1, MOST_TILE // (4 * self.vocabulary))
        for start in range(0, len(states), rows):
            with torch.inference_mode():
                logits = self.model.compute_logits(states[start : start + rows])
            yield "logits", {"start": start}, {"values": logits.float().cpu().numpy()}

    def _states(self, tokens: NDArray[np.int32]) -> torch.Tensor:
        """Return the final hidden states of a text, [n, hidden]."""
        self.states.clear()
        prompt = {"prompt_token_ids": tokens.tolist()}
        self.llm.generate([prompt], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
        states = torch.cat(self.states)
        self.states.clear()
        if len(states) != len(tokens):
            raise RuntimeError(f"vLLM computed {len(states)} hidden states of {len(tokens)} tokens")
        return states

    def generate(self, prefill: int, decode: int) -> tuple[float, float]:
        """Time both with tokens at random: until the first token comes, and until all have."""
        tokens = np.random.default_rng(0).integers(0, self.vocabulary, prefill, dtype=np.int32)
        self._check(tokens, prefill + decode + 1)
        if torch.cuda.is_available() and not self.is_compiled:
            self._start(is_compiled=True)
        engine = self.llm.llm_engine
        wanted = SamplingParams(max_tokens=decode + 1, ignore_eos=True, temperature=0, detokenize=False)
        times = [time.perf_counter()]
        engine.add_request(str(times[0]), {"prompt_token_ids": tokens.tolist()}, wanted)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            self.states.clear()
            if outputs and len(times) == 1:
                times.append(time.perf_counter())
        times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    def close(self) -> None:
        """Free the model and what vLLM keeps of it."""
        if self.llm is None:
            return
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = self.model = None
        self.states.clear()
        cleanup_dist_env_and_memory()

    def _check(self, tokens: NDArray[np.int32], length: int) -> None:
        if self.llm is None:
            raise ValueError("no model is loaded")
        if length > self.context:
            raise ValueError(f"{length} tokens do not fit the context of {self.context}")
        if len(tokens) < 2 or tokens.min() < 0 or tokens.max() >= self.vocabulary:
            raise ValueError(f"tokens are 2 or more of 0 to {self.vocabulary - 1}")


def cache_bytes(path: str, context: int) -> int:
    """Return the bytes of keys and values of twice ``context`` tokens in float32: room for whole blocks."""
    config = AutoConfig.from_pretrained(path, local_files_only=True).get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return LEAST_CACHE + 2 * 4 * int(config.num_hidden_layers * kept * head) * 2 * context


def device_name() -> str:
    """Return the GPU's name, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
