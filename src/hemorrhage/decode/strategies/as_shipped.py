"""As shipped: what transformers' ``generate`` does with the model's own ``generation_config.json``.

Its temperature, truncations, penalties, beams, minimal lengths, suppressed tokens and its list of end-of-sequence
tokens all count; how long a text may be is the task's. The text of a prompt is token for token that of
``model.generate(**prompt)`` at the same seed. A model that has no such file, or one that says nothing about decoding,
is decoded greedily, as transformers does, and the settings of the texts say so. A variant without a file of its own is
decoded with the base model's.

What the bench can't run is a gap that names the key: searches that transformers runs with code from the hub, drafting,
limits of wall-clock time, and several texts for a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from hemorrhage.decode.generation import Decoding, Prompts
from hemorrhage.models.refused import RefusedError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

Test = Callable[[Any], bool]
"""Whether a value of a key asks for something."""

FROM_THE_HUB = "transformers runs it with code from the hub alone"
DRAFTING = "drafting is measured by the strategy assisted"

REFUSED: Mapping[str, tuple[Test, str]] = {
    "penalty_alpha": (lambda value: value > 0, FROM_THE_HUB),
    "dola_layers": (bool, FROM_THE_HUB),
    "num_beam_groups": (lambda value: value > 1, FROM_THE_HUB),
    "constraints": (bool, FROM_THE_HUB),
    "force_words_ids": (bool, FROM_THE_HUB),
    "use_mtp": (bool, DRAFTING),
    "prompt_lookup_num_tokens": (bool, DRAFTING),
    "assistant_early_exit": (bool, DRAFTING),
    "num_return_sequences": (lambda value: value > 1, "a text of the sweep is one of its own; draws has several"),
    "max_time": (bool, "a limit of wall-clock time is another text on every machine"),
    "token_healing": (bool, "it changes the prompt"),
}
"""Key of generation_config.json -> when it is refused, and why."""

READS_PADDING = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "guidance_scale",
    "begin_suppress_tokens",
)
"""Keys under which transformers takes padding for text: prompts of different lengths are decoded one by one."""

NOT_DECODING = (
    "bos_token_id",
    "decoder_start_token_id",
    "max_length",
    "max_new_tokens",
    "pad_token_id",
    "transformers_version",
    "use_cache",
)
"""Keys that say nothing about how a token is taken, or whose value is the task's."""


class Settings(BaseModel):
    """Nothing is set here: the model's file has the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return "as shipped"


def shipped(config: GenerationConfig) -> dict[str, Any]:
    """Return what a generation configuration says about decoding; empty where it says nothing."""
    said = {key: value for key, value in config.to_diff_dict().items() if not key.startswith("_")}
    return {key: value for key, value in said.items() if key not in NOT_DECODING}


def describe(model: PreTrainedModel, _settings: Settings) -> dict[str, Any]:
    """Return what the settings of a text say besides the strategy's own, with a label for tables."""
    said = shipped(model.generation_config)
    if not said.keys() - {"eos_token_id"}:
        return {"generation_config": said, "label": "as shipped: greedy, since no generation_config.json says more"}
    words = ", ".join(f"{key} {value}" for key, value in said.items() if key != "eos_token_id")
    return {"generation_config": said, "label": f"as shipped: {words}"}


def parameters(model: PreTrainedModel, _settings: Settings, prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes. Raises RefusedError for what the bench can't run."""
    config = model.generation_config
    for key, (is_asked, reason) in REFUSED.items():
        value = getattr(config, key, None)
        if value is not None and is_asked(value):
            raise RefusedError(f"generation_config.json: {key}: {value}: {reason}")
    is_padded = bool((prompts.attention_mask == 0).any())
    reads_padding = any(getattr(config, key, None) not in (None, 0, 1.0, []) for key in READS_PADDING)
    return Decoding(
        {"do_sample": bool(config.do_sample)},
        shipped=True,
        stop=[config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings or (),
        one_by_one=is_padded and reads_padding,
    )
