"""transformers, in the environment of this bench: the library's own reading of a folder, with its own kernels.

``dtype`` ``auto`` is the dtype that the folder says, as a user who loads it gets it; ``float32`` computes in that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_TILE = 2**26
"""Bytes of logits that are sent at once, about."""

DTYPES = ("auto", "float32")

CACHES = ("past_key_values", "cache_params")
"""Names that models give their caches."""


class Worker:
    """One model, on the graphics card where there is one."""

    name = "transformers"
    version = transformers.__version__

    def __init__(self) -> None:
        self.model: Any = None
        self.context = self.vocabulary = 0

    def load(self, path: str, threads: int, context: int, dtype: str) -> dict[str, object]:
        """Load a folder."""
        self.close()
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: one of {', '.join(DTYPES)}")
        if not Path(path, "config.json").is_file():
            raise ValueError(f"{path}: no folder of Hugging Face")
        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
        self.model = loaded.to(device).eval()
        self.context = context
        self.vocabulary = self.model.get_output_embeddings().weight.shape[0]
        facts = {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": str(self.model.config._attn_implementation),
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "torch": torch.__version__,
            "threads": str(threads),
        }
        return {"vocabulary": self.vocabulary, "gives": "logits", "facts": facts}

    def score(
        self, tokens: NDArray[np.int32]
    ) -> Iterator[tuple[str, dict[str, object], dict[str, NDArray[np.float32]]]]:
        """Yield the logits of one forward pass, in tiles."""
        read = self._checked(tokens)[:, :-1]
        with torch.inference_mode():
            logits = self.model(input_ids=read, use_cache=False).logits[0]
        rows = max(1, MOST_TILE // (4 * self.vocabulary))
        for start in range(0, len(logits), rows):
            yield "logits", {"start": start}, {"values": logits[start : start + rows].float().cpu().numpy()}

    def generate(self, prefill: int, decode: int) -> tuple[float, float]:
        """Time both with tokens at random; logits of the last token alone are computed."""
        drawn = np.random.default_rng(0).integers(0, self.vocabulary, prefill + decode, dtype=np.int32)
        tokens = self._checked(drawn)
        begun = self._now()
        cache = self._read(tokens[:, :prefill], {})
        read = self._now()
        for place in range(prefill, prefill + decode):
            cache = self._read(tokens[:, place : place + 1], cache)
        return read - begun, self._now() - read

    def close(self) -> None:
        """Free the model."""
        self.model = None

    def _checked(self, tokens: NDArray[np.int32]) -> torch.Tensor:
        if self.model is None:
            raise ValueError("no model is loaded")
        if len(tokens) - 1 > self.context:
            raise ValueError(f"{len(tokens) - 1} tokens do not fit the context of {self.context}")
        if len(tokens) < 2 or tokens.min() < 0 or tokens.max() >= self.vocabulary:
            raise ValueError(f"tokens are 2 or more of 0 to {self.vocabulary - 1}")
        return torch.tensor(tokens, dtype=torch.long, device=self.model.device)[None]

    def _read(self, tokens: torch.Tensor, cache: dict[str, Any]) -> dict[str, Any]:
        """Read tokens after those of ``cache``; return the cache by the name that the model gives it."""
        with torch.inference_mode():
            output = self.model(input_ids=tokens, use_cache=True, logits_to_keep=1, **cache)
        name = next((name for name in CACHES if output.get(name) is not None), None)
        if name is None:
            raise RuntimeError(f"{type(self.model).__name__} returns no cache")
        return {name: output[name]}

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()
