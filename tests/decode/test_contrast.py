"""Contrasts between models, layers and beams against slow, literal references; the early exit they share."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.decode.early_exit import early_logits
from hemorrhage.decode.generation import ends, generate, until_end
from hemorrhage.decode.prompts import Prompt, left_padded
from hemorrhage.decode.strategies import beam, contrastive_decoding, diverse_beam, dola
from hemorrhage.models.checkpoint import load, load_tokenizer

TEXTS = ("Once upon a time", "The", "Lily and her mom went to the park. She saw a big, big, big")


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load(tiny)


@pytest.fixture(scope="module")
def prompts(tiny: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(tiny)
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return left_padded([Prompt(i, "", tokens) for i, tokens in enumerate(prompts)], padding=0)


def texts(model: Any, generated: torch.Tensor) -> list[list[int]]:
    return [until_end(row, ends(model)) for row in generated.tolist()]


def shortened(model: Any, layers: int) -> Any:
    """A model of its own: the first blocks, the norm and the head."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    short = type(model)(config).eval()
    short.load_state_dict(model.state_dict(), strict=False)
    return short


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()


def contrastive_reference(
    model: Any, amateur: Any, ids: list[int], new_tokens: int, alpha: float, beta: float
) -> list[int]:
    ids, start = list(ids), len(ids)
    for _ in range(new_tokens):
        expert, weaker = logits_of(model, ids), logits_of(amateur, ids)
        p = expert.softmax(-1).tolist()
        scores = {
            token: (1 + beta) * float(expert[token]) - beta * float(weaker[token])
            for token in range(len(p))
            if p[token] >= alpha * max(p)
        }
        ids.append(max(scores, key=scores.__getitem__))
        if ids[-1] in ends(model):
            break
    return ids[start:]


def dola_reference(
    model: Any, ids: list[int], new_tokens: int, layers: tuple[int, ...], alpha: float, penalty: float
) -> list[int]:
    ids, start = list(ids), len(ids)
    early = {layer: shortened(model, layer) for layer in layers}
    for _ in range(new_tokens):
        q = logits_of(model, ids).softmax(-1).tolist()
        others = {layer: logits_of(early[layer], ids).softmax(-1).tolist() for layer in layers}

        def divergence(layer: int, q: list[float] = q, others: dict[int, list[float]] = others) -> float:
            r = others[layer]
            mean = [(a + b) / 2 for a, b in zip(q, r, strict=True)]
            kl = [sum(a * math.log(a / m) for a, m in zip(side, mean, strict=True) if a) for side in (q, r)]
            return sum(kl) / 2

        chosen = max(layers, key=divergence)
        scores = {}
        for token in range(len(q)):
            if q[token] >= alpha * max(q):
                score = math.log(q[token]) - math.log(others[chosen][token])
                if token in ids:
                    score = score * penalty if score < 0 else score / penalty
                scores[token] = score
        ids.append(max(scores, key=scores.__getitem__))
        if ids[-1] in ends(model):
            break
    return ids[start:]


def diverse_reference(
    model: Any, ids: list[int], new_tokens: int, beams: int, groups: int, penalty: float
) -> list[int]:
    """All groups, one beam at a time; no sequence ends before ``new_tokens`` (checked)."""
    running = [[(0.0, list(ids))] for _ in range(groups)]
    for _ in range(new_tokens):
        taken: list[int] = []
        for group in range(groups):
            options = []
            for score, sequence in running[group]:
                log_p = logits_of(model, sequence).log_softmax(-1).tolist()
                for token, value in enumerate(log_p):
                    options.append((score + value - penalty * taken.count(token), [*sequence, token]))
            options.sort(key=lambda option: -option[0])
            running[group] = options[: beams // groups]
            assert not any(sequence[-1] in ends(model) for _, sequence in options[: 2 * beams // groups])
            taken += [sequence[-1] for _, sequence in running[group]]
    return max((option for group in running for option in group), key=lambda option: option[0])[1][len(ids) :]


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_an_early_exit_is_the_model_without_its_last_blocks(model: Any, prompts: list[list[int]], layers: int) -> None:
    ids = torch.tensor([prompts[2]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[layers]
        found = early_logits(model, states)
        torch.testing.assert_close(found, shortened(model, layers)(ids).logits, rtol=1e-4, atol=1e-4)


def test_an_early_exit_does_what_the_head_does() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    shape = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    ids = torch.arange(6)[None]
    for kind, config in (
        (Gemma2ForCausalLM, Gemma2Config(**shape, final_logit_softcapping=0.5)),
        (GraniteForCausalLM, GraniteConfig(**shape, logits_scaling=4.0)),
    ):
        torch.manual_seed(0)
        whole = kind(config).eval()
        with torch.no_grad():
            states = whole(ids, output_hidden_states=True).hidden_states[2]
            torch.testing.assert_close(early_logits(whole, states), shortened(whole, 2)(ids).logits)


@pytest.mark.parametrize(("layers", "alpha", "beta"), [(2, 0.1, 0.5), (1, 0.3, 2.0), (4, 0.01, 1.0)])
def test_contrastive_decoding_is_the_literal_one(
    model: Any, prompts: list[list[int]], layers: int, alpha: float, beta: float
) -> None:
    settings = contrastive_decoding.Settings(alpha=alpha, beta=beta, layers=layers)
    amateur = shortened(model, layers)
    expected = [contrastive_reference(model, amateur, ids, 14, alpha, beta) for ids in prompts]
    assert texts(model, generate(contrastive_decoding, model, *padded(prompts), 14, settings, 0)) == expected


def test_the_amateur_may_be_another_checkpoint(model: Any, prompts: list[list[int]], tmp_path: Path) -> None:
    amateur = shortened(model, 2)
    amateur.save_pretrained(tmp_path / "amateur")
    settings = contrastive_decoding.Settings(alpha=0.1, beta=1.0, amateur=str(tmp_path / "amateur"))
    expected = [contrastive_reference(model, amateur, ids, 14, 0.1, 1.0) for ids in prompts]
    assert texts(model, generate(contrastive_decoding, model, *padded(prompts), 14, settings, 0)) == expected
    within = contrastive_decoding.Settings(alpha=0.1, beta=1.0, layers=2)
    assert texts(model, generate(contrastive_decoding, model, *padded(prompts), 14, within, 0)) == expected
    assert settings.label == "contrastive decoding β 1, amateur amateur"


def test_an_amateur_of_another_vocabulary_is_refused(model: Any, prompts: list[list[int]], tmp_path: Path) -> None:
    config = copy.deepcopy(model.config)
    config.vocab_size = 100
    type(model)(config).save_pretrained(tmp_path / "other")
    settings = contrastive_decoding.Settings(amateur=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="its vocabulary has 100 tokens, the model's 512"):
        generate(contrastive_decoding, model, *padded(prompts), 4, settings, 0)


@pytest.mark.parametrize(
    ("layers", "alpha", "penalty"), [((1, 2, 3, 4), 0.1, 1.2), ((2,), 0.05, 1.0), ((1, 4), 0.3, 1.5)]
)
def test_dola_is_the_literal_one(
    model: Any, prompts: list[list[int]], layers: tuple[int, ...], alpha: float, penalty: float
) -> None:
    settings = dola.Settings(layers=layers, alpha=alpha, repetition_penalty=penalty)
    expected = [dola_reference(model, ids, 9, layers, alpha, penalty) for ids in prompts]
    assert texts(model, generate(dola, model, *padded(prompts), 9, settings, 0)) == expected


def test_the_layers_of_dola_by_name(model: Any) -> None:
    assert dola.candidates(model, "low") == (2,)
    assert dola.candidates(model, "high") == (2, 4)
    deep = copy.copy(model)
    deep.config = copy.deepcopy(model.config)
    deep.config.num_hidden_layers, deep.config.tie_word_embeddings = 32, False
    # What the paper names for a model of 32 layers.
    assert dola.candidates(deep, "low") == tuple(range(0, 16, 2))
    assert dola.candidates(deep, "high") == tuple(range(16, 32, 2))


def test_jensen_shannon_is_zero_of_equals_and_ln_2_of_strangers() -> None:
    p = torch.tensor([[0.5, 0.5, 1e-30, 1e-30], [0.25, 0.25, 0.25, 0.25]]).log()
    q = torch.tensor([[1e-30, 1e-30, 0.5, 0.5], [0.25, 0.25, 0.25, 0.25]]).log()
    torch.testing.assert_close(dola.jensen_shannon(p, q), torch.tensor([math.log(2), 0.0]))


@pytest.mark.parametrize("beams", [2, 4, 8])
def test_one_group_is_beam_search(
    model: Any, prompts: list[list[int]], beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = diverse_beam.Settings(beams=beams, groups=1, penalty=0)
    for stops in ([2], [2, 426, 410]):
        # Frequent tokens end sequences: beams of several lengths compete.
        monkeypatch.setattr(model.generation_config, "eos_token_id", stops)
        plain = generate(beam, model, *padded(prompts), 40, beam.Settings(beams=beams), 0)
        found = generate(diverse_beam, model, *padded(prompts), 40, settings, 0)
        assert texts(model, found) == texts(model, plain)


@pytest.mark.parametrize(("beams", "groups", "penalty"), [(4, 2, 1.0), (4, 4, 0.5), (6, 3, 3.0)])
def test_diverse_beam_search_is_the_literal_one(
    model: Any, prompts: list[list[int]], beams: int, groups: int, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(model.config, "eos_token_id", None)
    settings = diverse_beam.Settings(beams=beams, groups=groups, penalty=penalty)
    expected = [diverse_reference(model, ids, 6, beams, groups, penalty) for ids in prompts]
    assert texts(model, generate(diverse_beam, model, *padded(prompts), 6, settings, 0)) == expected


def test_groups_go_different_ways(model: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[Any] = []
    own = diverse_beam.best
    monkeypatch.setattr(diverse_beam, "best", lambda found, *rest: groups.append(found) or own(found, *rest))
    for penalty in (0.0, 50.0):
        settings = diverse_beam.Settings(beams=4, groups=4, penalty=penalty)
        generate(diverse_beam, model, *padded(prompts[:1]), 6, settings, 0)
    first = [{int(group.ids[0, 0, len(prompts[0])]) for group in found} for found in groups]
    assert [len(tokens) for tokens in first] == [1, 4]


@pytest.mark.parametrize(
    ("search", "options"),
    [
        (contrastive_decoding.contrastive_decoding, {"beta": 0.7, "layers": 2}),
        (dola.dola, {"layers": (1, 3), "repetition_penalty": 1.2}),
        (diverse_beam.diverse_beam_search, {"beams": 4, "groups": 2, "penalty": 1.0}),
    ],
)
def test_any_user_of_transformers_can_pass_them_to_generate(
    model: Any, prompts: list[list[int]], search: Any, options: dict[str, Any]
) -> None:
    prompt = torch.tensor([prompts[2]])
    generated = model.generate(prompt, max_new_tokens=8, custom_generate=search, **options)[0, prompt.shape[1] :]
    expected = {
        "contrastive_decoding": lambda: contrastive_reference(model, shortened(model, 2), prompts[2], 8, 0.1, 0.7),
        "dola": lambda: dola_reference(model, prompts[2], 8, (1, 3), 0.1, 1.2),
        "diverse_beam_search": lambda: diverse_reference(model, prompts[2], 8, 4, 2, 1.0),
    }[search.__name__]()
    assert generated.tolist() == expected
