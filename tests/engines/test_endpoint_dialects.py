"""Answers are read as the servers' own code and pages write them; what is not there is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from hemorrhage.engines.endpoint_dialects import DIALECTS, Answer, UnreadableError, Vocabulary
from hemorrhage.engines.endpoint_faults import in_answer

WORDS = ["<s>", " the", " cat", " sat", "the", " the"]
VOCABULARY = Vocabulary(WORDS, ["<s>", "▁the", "▁cat", "▁sat", "the", "Ġthe"], lambda tokens: "".join(map(str, tokens)))

VLLM: dict[str, Any] = {
    "id": "cmpl-1",
    "object": "text_completion",
    "model": "tiny",
    "choices": [
        {
            "index": 0,
            "text": " x",
            "logprobs": None,
            "finish_reason": "length",
            "token_ids": [3],
            "prompt_logprobs": [
                None,
                {
                    "2": {"logprob": -3.5, "rank": 4, "decoded_token": " cat"},
                    "1": {"logprob": -0.5, "rank": 1, "decoded_token": " the"},
                    "3": {"logprob": -1.5, "rank": 2, "decoded_token": " sat"},
                },
                {
                    "3": {"logprob": -0.25, "rank": 1, "decoded_token": " sat"},
                    "1": {"logprob": -9999.0, "rank": 2, "decoded_token": " the"},
                },
            ],
        }
    ],
    "usage": {"prompt_tokens": 3, "total_tokens": 4, "completion_tokens": 1},
}
ECHO: dict[str, Any] = {
    "model": "tiny",
    "choices": [
        {
            "text": "<s> cat sat on",
            "logprobs": {
                "text_offset": [0, 3, 7, 11],
                "tokens": ["<s>", " cat", " sat", " on"],
                "token_logprobs": [None, -3.5, -0.25, -1.0],
                "top_logprobs": [
                    None,
                    {" cat": -3.5, " the": -0.5, " sat": -1.5},
                    {" sat": -0.25, "the": -4.0},
                    {" on": -1.0},
                ],
            },
        }
    ],
}
SGLANG: dict[str, Any] = {
    "text": " on",
    "meta_info": {
        "prompt_tokens": 3,
        "input_token_logprobs": [[None, 0, None], [-3.5, 2, None], [-0.25, 3, None]],
        "input_top_logprobs": [None, [[-0.5, 1, None], [-1.5, 3, None]], [[-0.25, 3, None], [-4.0, 4, None]]],
        "output_token_logprobs": [[-1.0, 4, None], [-2.0, 1, None]],
    },
}
LLAMA: dict[str, Any] = {
    "content": " sat",
    "tokens": [3],
    "model": "tiny",
    "tokens_predicted": 1,
    "tokens_evaluated": 2,
    "completion_probabilities": [
        {
            "id": 3,
            "token": " sat",
            "bytes": [32],
            "logprob": -0.25,
            "top_logprobs": [{"id": 3, "token": " sat", "logprob": -0.25}, {"id": 4, "token": "the", "logprob": -4.0}],
        }
    ],
}


def test_vllm_gives_tokens_by_id_and_its_own_token_beside_the_top() -> None:
    answer = DIALECTS["prompt_logprobs"].read_answer(VLLM, [0, 2, 3], 2, VOCABULARY)
    assert answer.target.tolist() == [-3.5, -0.25]
    assert answer.ids.tolist() == [[1, 3], [3, 1]]
    assert answer.logprobs[0].tolist() == [-0.5, -1.5]
    assert np.isneginf(answer.logprobs[1, 1])
    assert answer.cap[0] == -1.5
    assert (answer.model, answer.read, answer.texts) == ("tiny", 3, ("", " cat", " sat"))
    assert answer.is_ordered
    assert DIALECTS["prompt_logprobs"].read_sample(VLLM, VOCABULARY).tokens == (3,)


def test_kl_of_an_answer_holds_the_exact_value_with_a_target_outside_of_the_top() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 39, 64))
    p, q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    window = rng.integers(64, size=40).tolist()
    ids = np.argsort(-q, axis=1)[:, :5]
    given = np.take_along_axis(q, ids, 1)
    exact = (np.exp(p) * (p - q)).sum(1)
    for target in (q[np.arange(39), window[1:]], np.full(39, np.nan)):
        answer = Answer(target, ids, given, given[:, -1])
        intervals = answer.kl(p, window, float(np.ptp(q, axis=1).max()))
        assert all(low <= value <= high for (low, high), value in zip(intervals, exact, strict=True))
        assert all(high == np.inf for _, high in answer.kl(p, window))


def test_ranks_that_do_not_agree_with_the_values_are_seen() -> None:
    row = {"1": {"logprob": -0.5, "rank": 2}, "2": {"logprob": -3.5, "rank": 1}}
    answer = DIALECTS["prompt_logprobs"].read_answer(
        {"choices": [{"prompt_logprobs": [None, row]}]}, [0, 2], 2, VOCABULARY
    )
    assert not answer.is_ordered


def test_the_completions_api_names_tokens_by_their_text() -> None:
    answer = DIALECTS["echo"].read_answer(ECHO, [0, 2, 3], 2, VOCABULARY)
    assert answer.target.tolist() == [-3.5, -0.25]
    # " the" is the text of two tokens, so it is none of them, but bounds every other.
    assert answer.ids.tolist() == [[3, 2], [3, 4]]
    assert answer.cap.tolist() == [-0.5, -4.0]
    assert answer.texts == ("<s>", " cat", " sat")
    assert answer.read is None


def test_sglang_gives_pairs_with_ids() -> None:
    answer = DIALECTS["sglang"].read_answer(SGLANG, [0, 2, 3], 2, VOCABULARY)
    assert answer.target.tolist() == [-3.5, -0.25]
    assert answer.ids.tolist() == [[1, 3], [3, 4]]
    assert answer.tokens == (0, 2, 3)
    assert DIALECTS["sglang"].read_sample(SGLANG, VOCABULARY).tokens == (4, 1)


def test_llama_server_gives_one_position() -> None:
    answer = DIALECTS["llama_cpp"].read_answer(LLAMA, [0, 2, 3], 2, VOCABULARY)
    assert (answer.target.tolist(), answer.ids.tolist(), answer.cap.tolist()) == ([-0.25], [[3, 4]], [-4.0])
    assert (answer.model, answer.read) == ("tiny", 3)
    assert np.isnan(DIALECTS["llama_cpp"].read_answer(LLAMA, [0, 2, 1], 2, VOCABULARY).target[0])
    assert DIALECTS["llama_cpp"].read_sample(LLAMA, VOCABULARY).tokens == (3,)


@pytest.mark.parametrize("name", DIALECTS)
def test_bodies_ask_for_plain_sampling(name: str) -> None:
    asked = DIALECTS[name].sample("tiny", [1, 2], 5, 0.7, 3)
    flat = {**asked, **(asked.get("sampling_params") or {})}  # type: ignore[dict-item]
    assert flat["temperature"] == 0.7
    assert flat["top_p"] == 1.0
    assert 5 in flat.values()
    assert 3 in flat.values()
    assert [1, 2] in flat.values()
    assert [1, 2] in DIALECTS[name].score("tiny", [1, 2], 9).values()
    assert 9 in DIALECTS[name].score("tiny", [1, 2], 9).values()


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "no",
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"logprobs": None, "prompt_logprobs": None}]},
        {"choices": [{"prompt_logprobs": [None]}]},
        {"choices": [{"prompt_logprobs": [None, {"x": {}}]}]},
        {"choices": [{"prompt_logprobs": [None, {"1": {"logprob": -1}}]}]},
        {"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]}}]},
        {"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [-1.0, -2, -3]}}]},
        {"meta_info": {"input_token_logprobs": [[None, 0], [None]]}},
        {"meta_info": {"input_token_logprobs": [[None, 0], [-1, 1]], "input_top_logprobs": [None]}},
        {"completion_probabilities": []},
        {"completion_probabilities": [{"top_logprobs": [{"logprob": -1}]}]},
    ],
)
def test_an_answer_that_lacks_something_is_one_line(name: str, content: object) -> None:
    with pytest.raises(UnreadableError) as raised:
        DIALECTS[name].read_answer(content, [0, 2], 2, VOCABULARY)
    assert "\n" not in str(raised.value)
    if not isinstance(content, dict) or "choices" not in content:
        with pytest.raises(UnreadableError):
            DIALECTS[name].read_sample(content, VOCABULARY)


def test_a_vocabulary_knows_texts_stored_pieces_and_ids() -> None:
    assert VOCABULARY.token(" cat") == VOCABULARY.token("▁cat") == VOCABULARY.token("token_id:2") == 2
    assert VOCABULARY.token("▁the") == 1
    assert VOCABULARY.token(" the") is None
    assert VOCABULARY.token("dog") is None
    assert VOCABULARY.is_text_of("cat", 2)
    assert VOCABULARY.is_text_of("token_id:2", 2)
    assert not VOCABULARY.is_text_of("token_id:3", 2)
    assert not VOCABULARY.is_text_of(" sat", 2)


def test_a_server_that_strips_spaces_names_no_token_by_a_text_of_two() -> None:
    pieces = ["<s>", " an", "an", " cat", " x"]
    vocabulary = Vocabulary(pieces, [piece.replace(" ", "▁") for piece in pieces], str)
    assert vocabulary.names([" an", " x"], [1, 4])("an") == 2
    assert vocabulary.names(["▁an", "▁x"], [1, 4])("an") == 2
    assert vocabulary.names(["an", "x"], [1, 4])("an") is None
    assert vocabulary.names(["an", "x"], [1, 4])("cat") == 3


def test_texts_that_overwrite_each_other_bound_nothing_and_are_no_fault() -> None:
    """As vLLM writes a vocabulary of bytes: two tokens have the text of the window's own, one of them is lost."""
    pieces = ["<s>", "", "", " cat", " sat"]
    vocabulary = Vocabulary(pieces, pieces, str)
    logprobs = {
        "tokens": ["<s>", "", "cat", "cat"],
        "token_logprobs": [None, -0.2, -3.0, -1.0],
        "top_logprobs": [None, {"": -4.5, "cat": -2.5}, {"": -0.1, "cat": -3.0, "sat": -4.0}, {}],
    }
    answer = DIALECTS["echo"].read_answer({"choices": [{"logprobs": logprobs}]}, [0, 1, 3], 3, vocabulary)
    assert answer.target.tolist() == [-0.2, -3.0]
    assert answer.ids[0].tolist() == [3, -1, -1]
    assert answer.cap.tolist() == [0.0, -0.1]
    assert in_answer(answer, [0, 1, 3], vocabulary, "tiny") == []


def test_a_vocabulary_of_a_real_tokenizer(tiny: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    vocabulary = Vocabulary.of(tokenizer)
    tokens = tokenizer.encode("Once upon a time there was a cat.", add_special_tokens=False).ids
    assert len(vocabulary) == tokenizer.get_vocab_size()
    assert "".join(vocabulary.pieces[token] for token in tokens).strip() == vocabulary.decode(tokens)
    assert all(vocabulary.is_text_of(vocabulary.pieces[token], token) for token in range(len(vocabulary)))
