"""Proof that a checkpoint on disk is the model that was altered in memory.

``check.safetensors`` of a checkpoint: ``tokens`` int32 [1, 48], drawn at random from the vocabulary, and
``logits`` float32 [4, vocabulary], the in-memory model's at the last four positions; ``exact``, of a model that rounds
activations or caches: the same without rounding. Rounding is discontinuous: on another processor, sums in another order
may move rounded logits by per cents, so that only the machine that wrote them compares these.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hemorrhage.models.weights import CHECK
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TOKENS = 48
POSITIONS = 4

TOLERANCE = 1e-4
"""Of the largest absolute logit. Float32 sums in another order differ by 1e-6 of it."""

PATIENCE = 3600
"""Seconds until a process that reads a checkpoint back is given up."""


class FreshProcess:
    """A process that reads a checkpoint back and compares it with what it was in memory.

    It is forked before any model is loaded, with the libraries imported: it shares nothing with the alteration but
    what lies on disk, and costs no start-up.
    """

    def __init__(self) -> None:
        import safetensors.torch  # noqa: F401 - imported for the child
        import transformers.models.llama.modeling_llama  # noqa: F401

        import hemorrhage.models.blockwise  # noqa: F401

        self._pipe, remote = multiprocessing.Pipe()
        self._child = os.fork()
        if self._child == 0:
            # With the parent's end open here, too, its closing would never be noticed.
            self._pipe.close()
            _serve(remote)
        remote.close()

    def verify(self, folder: Path, base: Path) -> None:
        """Raise ValueError where ``folder``, which may share weights with ``base``, reads back differently."""
        self._pipe.send((folder, base))
        answer = self._pipe.recv() if self._pipe.poll(PATIENCE) else "did not answer"
        if answer:
            raise ValueError(f"reading it back in a fresh process: {answer}")

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        os.waitpid(self._child, 0)


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    """Wait in the child for a folder, answer with what is wrong with it or nothing, and end."""
    from hemorrhage.models.checkpoint import load

    os.environ["HEMORRHAGE_DEVICE"] = "cpu"
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    try:
        folder, base = pipe.recv()
        try:
            model = load(folder, "stored", as_stored=True, base=base, streamed=True)
            _compare(_streamed(model, _tokens(folder)), folder, "logits")
            pipe.send("")
        except Exception as error:
            pipe.send(" ".join(f"{type(error).__name__}: {error}".split()))
    except (EOFError, BrokenPipeError):
        pass
    finally:
        os._exit(0)


def write_check(model: PreTrainedModel, folder: Path, seed: int) -> None:
    """Write ``check.safetensors`` of ``model``; ValueError where its logits are not finite."""
    from safetensors.torch import save_file

    from hemorrhage.models.emulation.activations import exact
    from hemorrhage.models.emulation.kv_cache import has_rounding

    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (1, TOKENS), generator=generator, dtype=torch.int32)
    logits = _streamed(model, tokens)
    if not logits.isfinite().all():
        raise ValueError("the altered model's logits are not finite")
    check = {"tokens": tokens, "logits": logits}
    if has_rounding(model):
        with exact():
            check["exact"] = _streamed(model, tokens)
    save_file(check, folder / CHECK)


def verify(model: PreTrainedModel, folder: Path) -> None:
    """Compare the float32 ``model``, loaded from ``folder``, with what it was in memory when it was written.

    Raises ValueError where a logit differs by more than ``TOLERANCE`` of the largest.
    """
    from hemorrhage.models.blockwise import is_streamed
    from hemorrhage.models.emulation.activations import exact

    if model.dtype != torch.float32 and not is_streamed(model):
        raise ValueError(f"reload is checked in float32, and the model is in {model.dtype}")

    tokens = _tokens(folder).long().to(model.device)
    with torch.inference_mode(), exact():
        output = model(tokens, use_cache=False, logits_to_keep=POSITIONS)
    _compare(output.logits[0].float().cpu(), folder, "exact")


def _tokens(folder: Path) -> Tensor:
    from safetensors.torch import load_file

    return load_file(folder / CHECK)["tokens"]


def _streamed(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the logits float32 [4, vocabulary] at the last positions, computed block by block."""
    from hemorrhage.models import blockwise

    with torch.inference_mode():
        hidden = blockwise.forward_blockwise(model, tokens.long().to(model.device))
        return blockwise.logits(model, hidden[0, -POSITIONS:]).cpu().contiguous()


def _compare(logits: Tensor, folder: Path, which: str) -> None:
    from safetensors.torch import load_file

    check = load_file(folder / CHECK)
    expected = check.get(which, check["logits"])
    difference = (logits - expected).abs().max().item()
    limit = TOLERANCE * expected.abs().max().item()
    # Not "difference > limit", which a NaN would pass.
    if not difference <= limit:
        raise ValueError(f"reload differs by {difference:.3g} in the logits (at most {limit:.3g} allowed)")
