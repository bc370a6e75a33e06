"""Evicted cache: after a prompt was read, attention forgets a share of its tokens; no weight changes.

``ratio`` is the share of a prompt's tokens that each key-value head of a layer forgets, those of lowest ``score``:

- ``streaming_llm``: all but the first ``sinks`` and the newest (Xiao et al., arXiv 2309.17453), at the positions that
  they had;
- ``snapkv``: what the last ``window`` queries attend to least, smoothed over ``kernel`` neighbours (Li et al., arXiv
  2404.14469);
- ``key_norm``: the largest keys (Devoto et al., arXiv 2406.11430);
- ``expected_attention``: what the queries of the next ``future`` positions are expected to attend to least, but for the
  first ``sinks`` (arXiv 2510.00636).

With a ratio of 0 the model is the base, bit for bit. The axis is that of rounded caches: 16 bits of a cached number
times the share that stays. hemorrhage.models.emulation.eviction says what a prompt is in generation and where a text is
scored; its first half in the latter case, so that only the second half of a window can be damaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Method, Wording, percent
from hemorrhage.compress.method import Settings as Base
from hemorrhage.models.emulation.evicted import evicted_tokens, scored_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hemorrhage.models.emulation.eviction import Eviction

FULL_BITS = 16
"""Bits of a cached number that stays."""

READ: Mapping[str, Mapping[str, int]] = {
    "streaming_llm": {"sinks": 4},
    "snapkv": {"window": 32, "kernel": 5},
    "key_norm": {},
    "expected_attention": {"sinks": 4, "future": 512},
}
"""Score -> the settings that it reads, with its authors' values."""

Count = Annotated[int, Field(ge=1, strict=True)]


class Settings(Base):
    """The share of a prompt's tokens that is evicted, and how their worth is scored."""

    axis: ClassVar[str] = "cache_bits"
    severity_field: ClassVar[str] = "ratio"
    words: ClassVar[Mapping[str, Wording]] = {
        "ratio": lambda ratio: f"{percent(ratio)} evicted",
        "score": {
            "streaming_llm": "StreamingLLM",
            "snapkv": "SnapKV",
            "key_norm": "by key norm",
            "expected_attention": "by expected attention",
        },
        "sinks": "{} sinks",
        "window": "{} queries observed",
        "kernel": "smoothed over {}",
        "future": "{} positions ahead",
    }
    theoretical: ClassVar[str] = "cache: evicted tokens stay in memory, masked; bytes are those of what is left"

    score: Literal["streaming_llm", "snapkv", "key_norm", "expected_attention"]
    ratio: Annotated[float, Field(ge=0, lt=1)]
    sinks: Annotated[int, Field(ge=0, strict=True)] | None = None
    window: Count | None = None
    kernel: Count | None = None
    future: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _authors(cls, values: Any) -> Any:
        # Written into the settings, so that the manifest has them.
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        return {**READ.get(str(values.get("score")), {}), **given}

    @model_validator(mode="after")
    def _settings_fit(self) -> Settings:
        for name in ("sinks", "window", "kernel", "future"):
            if getattr(self, name) is not None and name not in READ[self.score]:
                readers = [score for score, settings in READ.items() if name in settings]
                raise ValueError(f"{name} is for score: {' or '.join(readers)}, and score is {self.score}")
        if self.kernel is not None and self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd (got {self.kernel})")
        return self

    @property
    def severity(self) -> float:
        """Bits of a cached number of a prompt's tokens, on average, those that are gone included."""
        return FULL_BITS * (1 - self.ratio)

    @property
    def changes_weights(self) -> bool:
        """No: tokens are left out of what attention reads."""
        return False

    @property
    def eviction(self) -> Eviction:
        """What the model is made to do."""
        from hemorrhage.models.emulation.eviction import Eviction

        return Eviction(
            self.score, self.ratio, self.sinks or 0, self.window or 0, self.kernel or 0, future=self.future or 0
        )

    def check_text(self, tokens: int) -> str | None:
        """Return the reason why the score would decide nothing in a prompt of half a text, or None."""
        prompt = scored_prompt(tokens)
        stay = prompt - evicted_tokens(prompt, self.ratio)
        of = f"of the {prompt} tokens of a text's first half"
        if not self.ratio:
            return None
        if stay == prompt:
            return f"ratio {self.ratio:g} {of} evicts none"
        for name in ("sinks", "window"):
            always = getattr(self, name)
            if always is not None and always >= stay:
                return (
                    f"{stay} {of} stay, and {name} is {always}: the score decides nothing; allowed is less than {stay}"
                )
        return None

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        if not config.get("num_attention_heads"):
            return "this model has no attention, and so no keys and values"
        return None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where the model's attention can't leave tokens out, or a score can't be computed."""
        from hemorrhage.models.emulation import eviction

        eviction.check(model, self.eviction)
        return None


def alter(model: PreTrainedModel, settings: Settings, _context: Context) -> Alteration:
    """Make ``model`` evict; its weights stay as they are."""
    from hemorrhage.models.emulation import eviction

    eviction.evict(model, settings.eviction)
    entries = cache_bytes(model, settings)
    stays = entries["cache_bytes_per_token"] / entries["cache_bytes_per_token_base"]
    # Of layers with a sliding window nothing is evicted.
    return Alteration(entries={**entries, "severity": FULL_BITS * stays})


def cache_bytes(model: PreTrainedModel, settings: Settings) -> Mapping[str, float]:
    """Return the bytes that a token of a prompt leaves in the cache on average, and in the base model's.

    Layers with a sliding window evict nothing. Tokens after the prompt take the base's bytes.
    """
    from hemorrhage.models.emulation.eviction import evicting_layers
    from hemorrhage.models.emulation.kv_cache import attention_layers, cached_numbers

    of_layer = cached_numbers(model) * next(model.parameters()).element_size()
    layers, evicting = len(attention_layers(model)), len(evicting_layers(model))
    return {
        "cache_bytes_per_token": of_layer * (layers - settings.ratio * evicting),
        "cache_bytes_per_token_base": of_layer * layers,
        "cache_exact_tokens": 0,
    }


METHOD = Method(
    MethodInfo(
        title="Evicted KV cache",
        summary="a share of the prompt's tokens is forgotten: StreamingLLM, SnapKV, key norm, expected attention",
        papers=(
            Paper("Xiao et al.", "2309.17453"),
            Paper("Li et al.", "2404.14469"),
            Paper("Devoto et al.", "2406.11430"),
            Paper("Devoto et al.", "2510.00636"),
        ),
        examples=(
            {"score": "snapkv", "ratio": 0.5, "window": 8},
            {"score": "streaming_llm", "ratio": 0.5},
            {"score": "key_norm", "ratio": 0.5},
            {"score": "expected_attention", "ratio": 0.5, "future": 64},
        ),
        storage=("kv_cache",),
    ),
    Settings,
    alter,
)
