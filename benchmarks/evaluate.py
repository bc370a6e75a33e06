"""Speed and memory of the evaluation, next to the bare model's and lm-eval's.

python -m benchmarks.evaluate --base MODEL --window 128 --windows 16

In one process, in turns, the same windows in the same batches with the same threads:

- ``bare``: the forward pass with logits, ``model(input_ids).logits`` of transformers, in float32;
- ``bfloat16``: the same in bfloat16;
- ``lm-eval``: the log-likelihoods of the windows by lm-eval's own loop, in float32;
- ``evaluation``: the whole evaluation of a corpus, every column of tokens.parquet written to disk, KL among them;
- ``own head``: the same of a variant whose head is another than the base's, whose logits are computed again.

The variant is the model with noise on its weights, the tokens are drawn at random. Printed are tokens per second, and
the evaluation's as a share of the others': the median over repetitions of a quotient of neighbours in time, by the
clock and by the processor's seconds, which say more on a busy machine (with one thread: others spin while they wait);
and the peak resident memory of processes of their own that evaluate the corpus and one of eight times its length.
Without --base a random model of SmolLM2-135M's shape is taken.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hemorrhage.evaluate.language import (
    batches,
    corpus_damage,
    windows_per_batch,
    write_base_side,
    write_tokens,
)
from hemorrhage.models.checkpoint import device, load
from hemorrhage.models.head import head_of

CORPUS = "lot"
EVALUATION = "evaluation"
LONGER = 8


def shape_of_smollm2() -> LlamaForCausalLM:
    """SmolLM2-135M with random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True,
        )
    )  # fmt: skip


def damage(model: PreTrainedModel) -> None:
    """Put noise of a hundredth of their spread on the blocks' weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".layers." in name:
                noise = torch.randn(weight.shape, generator=generator).to(weight.device)
                if weight.numel() > 1:
                    weight.add_(0.01 * weight.std() * noise)


def bare(model: PreTrainedModel, windows: torch.Tensor, at_once: int) -> None:
    """Logits of every window, and nothing else."""
    with torch.inference_mode():
        for part in batches(len(windows), at_once):
            tokens = windows[part].to(model.device).long()
            logits = model(input_ids=tokens, use_cache=False).logits
            del logits
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def lm_eval(model: PreTrainedModel, windows: torch.Tensor, at_once: int) -> Callable[[], None]:
    """Return lm-eval's log-likelihoods of every window after its first token."""
    from lm_eval.models.huggingface import HFLM

    # It asks for a tokenizer, and gets tokens.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"-": 0}, unk_token="-")), eos_token="-")
    harness: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=at_once, max_length=windows.shape[1])
    requests = [(("", ""), window[:1], window[1:]) for window in windows.tolist()]
    return lambda: harness._loglikelihood_tokens(requests, disable_tqdm=True)


def evaluation(model: PreTrainedModel, folder: Path, head: torch.Tensor | None, at_once: int) -> None:
    """Run the evaluation's language side, to disk; without a ``head`` the base's is the model's."""
    write_tokens(corpus_damage(model, folder, CORPUS, head, at_once), folder / "tokens.parquet")


def prepare(model: PreTrainedModel, folder: Path, window: int, count: int) -> torch.Tensor:
    """Write the reference's files of ``count`` random windows, which are returned."""
    vocabulary = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(vocabulary, (count, window), generator=generator, dtype=torch.int32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({CORPUS: windows}, folder / "windows.safetensors")
    save_file({CORPUS: torch.bincount(windows.flatten(), minlength=vocabulary)}, folder / "counts.safetensors")
    write_base_side(model, {CORPUS: windows}, folder)
    return windows


def peak() -> int:
    """Peak memory of this process in bytes: of the GPU where it computes there."""
    if device() == "cuda":
        return torch.cuda.max_memory_allocated()
    # Linux counts kibibytes.
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_alone(arguments: argparse.Namespace, windows: int) -> int:
    """Peak memory of a process that makes the base's side of so many windows and evaluates them."""
    command = [sys.executable, "-m", "benchmarks.evaluate", "--once", "--windows", str(windows)]
    command += ["--window", str(arguments.window), "--threads", str(arguments.threads)]
    if arguments.base:
        command += ["--base", str(arguments.base)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(done.stdout)["peak"])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--once", action="store_true", help="evaluate once and print the peak memory alone")
    parser.add_argument("--no-memory", action="store_true", help="leave the two evaluations for their memory out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    at_once = windows_per_batch(arguments.window)
    loaded: Any = shape_of_smollm2() if arguments.base is None else load(arguments.base)
    model: PreTrainedModel = loaded.to(device()).eval()
    head = head_of(model).weight.float().clone()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        windows = prepare(model, folder, arguments.window, arguments.windows)
        damage(model)
        if arguments.once:
            evaluation(model, folder, None, at_once)
            print(json.dumps({"peak": peak()}))
            return
        narrow: Any = copy.deepcopy(model)
        narrow.to(torch.bfloat16)
        kinds: dict[str, Callable[[], None]] = {
            "bare": lambda: bare(model, windows, at_once),
            "bfloat16": lambda: bare(narrow, windows, at_once),
            "lm-eval": lm_eval(model, windows, at_once),
            EVALUATION: lambda: evaluation(model, folder, None, at_once),
            "own head": lambda: evaluation(model, folder, head, at_once),
        }
        clocks: dict[str, Callable[[], float]] = {"clock": time.perf_counter, "processor": time.process_time}
        seconds: dict[tuple[str, str], list[float]] = {(kind, clock): [] for kind in kinds for clock in clocks}
        for repetition in range(arguments.repetitions + 1):
            for kind, run in kinds.items():
                start = {name: time_of() for name, time_of in clocks.items()}
                run()
                # The first repetition warms up.
                if repetition:
                    for name, time_of in clocks.items():
                        seconds[kind, name].append(time_of() - start[name])
    where = torch.cuda.get_device_name() if device() == "cuda" else f"{arguments.threads} threads"
    print(f"{where}, batches of {at_once} windows of {arguments.window}, {arguments.windows} windows")
    for (kind, clock), found in seconds.items():
        speeds = [windows.numel() / each for each in found]
        print(f"{kind}: {statistics.median(speeds):.1f} tokens/s by {clock} ({min(speeds):.1f} to {max(speeds):.1f})")
    for kind in (name for name in kinds if name != EVALUATION):
        for clock in clocks:
            pairs = zip(seconds[kind, clock], seconds[EVALUATION, clock], strict=True)
            shares = [theirs / ours for theirs, ours in pairs]
            spread = f"({min(shares):.3f} to {max(shares):.3f})"
            print(f"evaluation over {kind} by {clock}: {statistics.median(shares):.3f} {spread}")
    if not arguments.no_memory:
        short, long = (peak_alone(arguments, arguments.windows * times) for times in (1, LONGER))
        print(f"peak memory: {short / 2**20:.0f} MiB, of {LONGER} times the length {long / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
