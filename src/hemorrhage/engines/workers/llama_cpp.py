"""llama.cpp through xllamacpp: the C interface of the library in its wheel.

The wheel's own interface is llama.cpp's server, which gives no logits of a whole vocabulary; its library exports
llama.h, which is called here. The structures below are those of release b11549; defaults that the library fills in are
compared with those of that release, so that another layout is refused and not misread.

Settings are those of llama.cpp's own tools: keys and values in float16, flash attention as it decides, batches of 512;
``dtype`` float32 keeps keys and values in float32 and writes attention out.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np
import xllamacpp

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BATCH = 512
"""Tokens that are computed together, at most: n_ubatch of llama.cpp's tools."""

MOST_TILE = 2**26
"""Bytes of logits that are kept at once, about."""

DTYPES = ("auto", "float32")

FLOAT32, FLOAT16, NO_FLASH_ATTENTION = 0, 1, 0
"""Values of ggml_type and llama_flash_attn_type."""


class ModelParams(Structure):
    """``llama_model_params``."""

    _fields_ = (
        ("devices", c_void_p), ("tensor_buft_overrides", c_void_p), ("n_gpu_layers", c_int32), ("split_mode", c_int32),
        ("load_mode", c_int32), ("lazy_mode", c_int32), ("main_gpu", c_int32), ("tensor_split", c_void_p),
        ("progress_callback", c_void_p), ("progress_callback_user_data", c_void_p), ("kv_overrides", c_void_p),
        ("vocab_only", c_bool), ("check_tensors", c_bool), ("use_extra_bufts", c_bool), ("no_host", c_bool),
        ("no_alloc", c_bool), ("load_mtp", c_bool),
    )  # fmt: skip


class ContextParams(Structure):
    """``llama_context_params``."""

    _fields_ = (
        ("n_ctx", c_uint32), ("n_batch", c_uint32), ("n_ubatch", c_uint32), ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32), ("n_outputs_max", c_uint32), ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32), ("n_threads_batch", c_int32), ("ctx_type", c_int32), ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32), ("attention_type", c_int32), ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float), ("rope_freq_scale", c_float), ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float), ("yarn_beta_fast", c_float), ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32), ("defrag_thold", c_float), ("cb_eval", c_void_p), ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32), ("type_v", c_int32), ("moe_cache_size", c_size_t), ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p), ("embeddings", c_bool), ("offload_kqv", c_bool), ("no_perf", c_bool),
        ("op_offload", c_bool), ("swa_full", c_bool), ("kv_unified", c_bool), ("samplers", c_void_p),
        ("n_samplers", c_size_t), ("ctx_other", c_void_p),
    )  # fmt: skip


class Batch(Structure):
    """``llama_batch``."""

    _fields_ = (
        ("n_tokens", c_int32), ("token", POINTER(c_int32)), ("embd", c_void_p), ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)), ("seq_id", POINTER(POINTER(c_int32))), ("logits", POINTER(c_int8)),
    )  # fmt: skip


DEFAULTS: dict[str, object] = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max": 0, "n_outputs_max_per_seq": 1,
    "n_threads": 4, "flash_attn_type": -1, "yarn_orig_ctx": 0, "defrag_thold": -1.0, "type_k": FLOAT16,
    "type_v": FLOAT16, "abort_callback": None, "embeddings": False, "offload_kqv": True, "no_perf": True,
    "op_offload": True, "swa_full": True, "kv_unified": False, "samplers": None, "n_samplers": 0, "ctx_other": None,
}  # fmt: skip
"""What llama_context_default_params of b11549 says."""

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "llama_backend_init": (None,),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (c_void_p, c_char_p, ModelParams),
    "llama_init_from_model": (c_void_p, c_void_p, ContextParams),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_model_desc": (c_int32, c_void_p, c_char_p, c_size_t),
    "llama_print_system_info": (c_char_p,),
    "llama_n_ctx": (c_uint32, c_void_p),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_memory_clear": (None, c_void_p, c_bool),
    "llama_batch_init": (Batch, c_int32, c_int32, c_int32),
    "llama_batch_free": (None, Batch),
    "llama_decode": (c_int32, c_void_p, Batch),
    "llama_synchronize": (None, c_void_p),
    "llama_get_logits": (POINTER(c_float), c_void_p),
    "llama_free": (None, c_void_p),
    "llama_model_free": (None, c_void_p),
}
"""Function -> what it returns, and its arguments."""


def library() -> Any:
    """Return the library of the wheel, with the signatures. Raises RuntimeError where it is another release's."""
    opened = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    for name, (result, *arguments) in SIGNATURES.items():
        function = getattr(opened, name)
        function.restype, function.argtypes = result, arguments
    filled = opened.llama_context_default_params()
    given = {name: getattr(filled, name) for name in DEFAULTS}
    if given != DEFAULTS:
        raise RuntimeError(f"the structures of {Worker.version} are not those of b11549")
    return opened


class Worker:
    """One model on the processor."""

    name = "llama.cpp"
    # The wheel is numbered by llama.cpp's release; the library itself was built without its number.
    version = f"b{xllamacpp.__version__.split('.')[2]}"

    def __init__(self) -> None:
        self.lib = library()
        self.lib.llama_backend_init()
        self.model: int | None = None
        self.context: int | None = None
        self.vocabulary = self.batch = 0

    def load(self, path: str, threads: int, context: int, dtype: str) -> dict[str, object]:
        """Load a GGUF file."""
        self.close()
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: one of {', '.join(DTYPES)}")
        wanted = self.lib.llama_model_default_params()
        wanted.n_gpu_layers = 0
        self.model = self.lib.llama_model_load_from_file(path.encode(), wanted)
        if self.model is None:
            raise ValueError(f"{path}: llama.cpp can't load it")
        self.vocabulary = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        self.batch = max(1, min(MOST_BATCH, context, MOST_TILE // (4 * self.vocabulary)))
        self.context = self._context(threads, context, dtype)
        return {"vocabulary": self.vocabulary, "gives": "logits", "facts": self._facts(threads, context, dtype)}

    def _context(self, threads: int, context: int, dtype: str) -> int:
        wanted = self.lib.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch, wanted.n_seq_max = context, self.batch, self.batch, 1
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.no_perf = True
        if dtype == "float32":
            wanted.type_k = wanted.type_v = FLOAT32
            wanted.flash_attn_type = NO_FLASH_ATTENTION
        made = self.lib.llama_init_from_model(self.model, wanted)
        if made is None:
            raise RuntimeError(f"llama.cpp makes no context of {context} tokens")
        return int(made)

    def _facts(self, threads: int, context: int, dtype: str) -> dict[str, str]:
        described = ctypes.create_string_buffer(256)
        self.lib.llama_model_desc(self.model, described, 256)
        return {
            "model": described.value.decode(),
            "wheel": f"xllamacpp {xllamacpp.__version__}",
            "cache": "float32" if dtype == "float32" else "float16",
            "batch": str(self.batch),
            "context": str(context),
            "threads": str(threads),
            "system": self.lib.llama_print_system_info().decode().strip(),
        }

    def score(
        self, tokens: NDArray[np.int32]
    ) -> Iterator[tuple[str, dict[str, object], dict[str, NDArray[np.float32]]]]:
        """Yield the logits of each batch; keys and values of earlier batches are in the cache.

        The last token is computed, too, as llama.cpp's tools do: a kernel may take other paths for a batch that is one
        shorter.
        """
        self._check(tokens, len(tokens))
        self._forget()
        for start in range(0, len(tokens) - 1, self.batch):
            part = tokens[start : start + self.batch]
            self._decode(part, start, every=True)
            pointer = self.lib.llama_get_logits(self.context)
            values = np.ctypeslib.as_array(pointer, (len(part), self.vocabulary))
            yield "logits", {"start": start}, {"values": values[: len(tokens) - 1 - start]}

    def generate(self, prefill: int, decode: int) -> tuple[float, float]:
        """Time both with tokens at random, as llama-bench does; the output of the last token alone is computed."""
        tokens = np.random.default_rng(0).integers(0, self.vocabulary, prefill + decode, dtype=np.int32)
        self._check(tokens, len(tokens))
        self._forget()
        times = [time.perf_counter()]
        for start in range(0, prefill, self.batch):
            self._decode(tokens[start : min(start + self.batch, prefill)], start, every=False)
        times.append(time.perf_counter())
        for position in range(prefill, prefill + decode):
            self._decode(tokens[position : position + 1], position, every=True)
        times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    def close(self) -> None:
        """Free the model and its context."""
        if self.context is not None:
            self.lib.llama_free(self.context)
        if self.model is not None:
            self.lib.llama_model_free(self.model)
        self.model = self.context = None

    def _check(self, tokens: NDArray[np.int32], computed: int) -> None:
        if self.context is None:
            raise ValueError("no model is loaded")
        most = self.lib.llama_n_ctx(self.context)
        if computed > most:
            raise ValueError(f"{computed} tokens do not fit the context of {most}")
        if len(tokens) < 2 or tokens.min() < 0 or tokens.max() >= self.vocabulary:
            raise ValueError(f"tokens are 2 or more of 0 to {self.vocabulary - 1}")

    def _forget(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def _decode(self, tokens: NDArray[np.int32], start: int, every: bool) -> None:
        """Compute ``tokens`` at ``start`` and after; logits of every one, or of the last."""
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for index, token in enumerate(tokens.tolist()):
                batch.token[index], batch.pos[index] = token, start + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = every or index == len(tokens) - 1
            status = self.lib.llama_decode(self.context, batch)
            self.lib.llama_synchronize(self.context)
        finally:
            self.lib.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
