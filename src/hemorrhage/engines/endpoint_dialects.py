"""The ways in which servers give log-probabilities of a prompt's tokens, and tokens that they sample.

- ``prompt_logprobs``: vLLM's field of the completions API; tokens and the likeliest at each position by their ids.
- ``echo``: the completions API with echo and logprobs, as OpenAI defined it; tokens by their text.
- ``sglang``: SGLang's own /generate with return_logprob.
- ``llama_cpp``: llama-server's own /completion with n_probs, which knows no log-probabilities of a prompt: one request
  per position, each for the next token of a prefix. A token outside of the top k has none.

Each is a function that makes a request's body and one that reads the answer; both know nothing of a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from hemorrhage.engines.endpoint_http import EndpointError
from hemorrhage.engines.topk import Floats, Interval, Ints, kl_interval

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NEUTRAL = {"temperature": 1.0, "top_p": 1.0}
"""Sampling that changes no probability."""

BY_ID = re.compile(r"token_id:(\d+)")


class UnreadableError(EndpointError):
    """The answer lacks what the dialect says; the message is one line."""


def _unique(named: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the texts that name one token."""
    tokens: dict[str, set[int]] = {}
    for text, token in named:
        tokens.setdefault(text, set()).add(token)
    return {text: each.pop() for text, each in tokens.items() if len(each) == 1}


def _by_name(names: Mapping[str, int], text: str) -> int | None:
    by_id = BY_ID.fullmatch(text)
    return int(by_id[1]) if by_id else names.get(text)


class Vocabulary:
    """The text of each token: within a text (``pieces``), and as the tokenizer stores it (``stored``).

    ``decode`` makes a text of tokens, for servers that take no ids.
    """

    def __init__(self, pieces: Sequence[str], stored: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self.pieces, self.stored, self.decode = tuple(pieces), tuple(stored), decode
        self._exact = [
            _unique((text, token) for token, text in enumerate(texts)) for texts in (self.pieces, self.stored)
        ]
        forms = enumerate(zip(self.pieces, self.stored, strict=True))
        self._loose = _unique((text, token) for token, (a, b) in forms for text in {a, b, a.strip()})

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Read a tokenizer of the tokenizers library."""
        size = 1 + max(tokenizer.get_vocab().values())
        anchor = tokenizer.encode("a", add_special_tokens=False).ids
        before = tokenizer.decode(anchor)
        both = tokenizer.decode_batch([[*anchor, token] for token in range(size)], skip_special_tokens=False)
        stored = [tokenizer.id_to_token(token) or "" for token in range(size)]
        return cls([text.removeprefix(before) for text in both], stored, tokenizer.decode)

    def __len__(self) -> int:
        return len(self.pieces)

    def token(self, text: str) -> int | None:
        """Return the token that a text names in any way of writing; None where it names none, or several."""
        return _by_name(self._loose, text)

    def names(self, texts: Sequence[str], tokens: Sequence[int]) -> Callable[[str], int | None]:
        """Return ``token`` for a server that calls these tokens so.

        Where it writes all of them as pieces, or as they are stored, so it does others. Some strip spaces: then a text
        may name two tokens.
        """
        written = [(text, token) for text, token in zip(texts, tokens, strict=True) if not self._is_partial(token)]
        for form, exact in zip((self.pieces, self.stored), self._exact, strict=True):
            shows_spaces = any(text != self.pieces[token].strip() for text, token in written)
            if shows_spaces and all(text == form[token] for text, token in written):
                return partial(_by_name, exact)
        return self.token

    def _is_partial(self, token: int) -> bool:
        return "\N{REPLACEMENT CHARACTER}" in self.pieces[token]

    def is_text_of(self, text: str, token: int) -> bool:
        """Tell whether a server may call a token so. A part of a character may be written in any way."""
        if by_id := BY_ID.fullmatch(text):
            return int(by_id[1]) == token
        piece = self.pieces[token]
        is_partial = self._is_partial(token) or text.startswith("bytes:")
        return is_partial or text in (piece, self.stored[token]) or text.strip() == piece.strip()


@dataclass(frozen=True)
class Answer:
    """The log-probabilities of a window ``[n]``: at each of its positions but the first, ``[n - 1]``.

    ``target``: of the window's own token; nan where the server gives none. ``ids`` and ``logprobs`` ``[n - 1, k]``: of
    the likeliest, most likely first; -1 and nan where there are fewer. ``cap`` ``[n - 1]``: what no other token is
    above. ``is_ordered``: the server's order or ranks agree with the values. Where the server says so: ``model``,
    ``read`` (how many tokens it counted), ``texts`` (its text of each) and ``tokens``.
    """

    target: Floats
    ids: Ints
    logprobs: Floats
    cap: Floats
    is_ordered: bool = True
    model: str | None = None
    read: int | None = None
    texts: tuple[str, ...] | None = None
    tokens: tuple[int, ...] | None = None

    def kl(self, base: Floats, window: Sequence[int], largest_range: float = np.inf) -> list[Interval]:
        """Bound KL(base || served) at each position, of the base's log-probabilities ``[n - 1, vocabulary]``.

        ``largest_range``: how far apart two logits can be (hemorrhage.engines.topk.logit_range); without it there is no
        upper bound.
        """
        intervals = []
        for row, own, target, ids, logprobs, cap in zip(
            base, window[1:], self.target, self.ids, self.logprobs, self.cap, strict=True
        ):
            known = ids >= 0
            is_added = not np.isnan(target) and own not in ids
            tokens = np.append(ids[known], own) if is_added else ids[known]
            values = np.append(logprobs[known], target) if is_added else logprobs[known]
            floor = values.max(initial=-np.inf) - largest_range
            intervals.append(kl_interval(row, tokens, values, float(cap), float(floor)))
        return intervals


@dataclass(frozen=True)
class Sample:
    """Tokens that a server generated."""

    tokens: tuple[int, ...]
    model: str | None = None


Json = Mapping[str, object]
Prompt = Sequence[int] | str


@dataclass(frozen=True)
class Dialect:
    """How to ask a server and to read it; ``per_position``: one request for each position of a window.

    ``score(model, prompt, top)`` and ``sample(model, prompt, count, temperature, seed)`` return a request's body.
    """

    path: str
    score: Callable[[str, Prompt, int], Json]
    sample: Callable[[str, Prompt, int, float, int], Json]
    read_answer: Callable[[object, Sequence[int], int, Vocabulary], Answer]
    read_sample: Callable[[object, Vocabulary], Sample]
    per_position: bool = False
    takes_text: bool = False


def _mapping(value: object, what: str) -> Json:
    if not isinstance(value, Mapping):
        raise UnreadableError(f"the answer has no {what}")
    return value


def _list(value: object, what: str) -> Sequence[object]:
    if not isinstance(value, list):
        raise UnreadableError(f"the answer has no {what}")
    return value


def _number(value: object) -> float:
    """Return a log-probability; minus infinity has several spellings in JSON, and nan where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return -np.inf if value in ("-Infinity", "-inf") else np.nan
    return -np.inf if value <= -9999 else float(value)


def _choice(content: object) -> Json:
    choices = _list(_mapping(content, "JSON object").get("choices"), "choices")
    if not choices:
        raise UnreadableError("the answer's choices are empty")
    return _mapping(choices[0], "choice")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_count(content: object) -> int | None:
    usage = _mapping(content, "JSON object").get("usage")
    return _whole(usage.get("prompt_tokens")) if isinstance(usage, Mapping) else None


def _is_descending(values: Sequence[float]) -> bool:
    return all(first >= second - 1e-6 for first, second in pairwise(values))


Row = tuple[int, float, Sequence[tuple[int | None, float]]]
"""Of a position: its token, that token's log-probability, and those of the likeliest; None: a text of no one token."""


def _answer(rows: Sequence[Row], top: int) -> Answer:
    ids = np.full((len(rows), top), -1, dtype=np.int64)
    logprobs, cap = np.full((len(rows), top), np.nan, dtype=np.float64), np.zeros(len(rows), dtype=np.float64)
    for position, (own, _, entries) in enumerate(rows):
        ordered = sorted(entries, key=lambda entry: -entry[1])
        named = [(token, value) for token, value in ordered if token is not None][:top]
        ids[position, : len(named)] = np.array([token for token, _ in named], dtype=np.int64)
        logprobs[position, : len(named)] = [value for _, value in named]
        # The window's own token is given although it may not be among the likeliest, so it bounds nothing. One whose
        # text names no token is somewhere among the others, with its log-probability.
        others = [value for token, value in ordered if token != own]
        unnamed = [value for token, value in ordered if token is None]
        cap[position] = max([others[-1], *unnamed]) if others else 0.0
    return Answer(np.array([target for _, target, _ in rows], dtype=np.float64), ids, logprobs, cap)


# vLLM


def _vllm_score(model: str, prompt: Prompt, top: int) -> Json:
    return {"model": model, "prompt": prompt, "max_tokens": 1, "prompt_logprobs": top, **NEUTRAL}


def _vllm_answer(content: object, tokens: Sequence[int], top: int, _vocabulary: Vocabulary) -> Answer:
    positions = _list(_choice(content).get("prompt_logprobs"), "prompt_logprobs")
    if len(positions) != len(tokens):
        raise UnreadableError(f"the answer has prompt_logprobs of {len(positions)} positions, not {len(tokens)}")
    rows: list[Row] = []
    texts, is_ordered = [], True
    for position, token in zip(positions[1:], tokens[1:], strict=True):
        given = _mapping(position, "prompt_logprobs of a position")
        entries: dict[int, float] = {}
        ranked: list[tuple[int, float]] = []
        for key, value in given.items():
            entry = _mapping(value, "logprob of a token")
            if not str(key).isdecimal():
                raise UnreadableError("prompt_logprobs has keys that are no token ids")
            entries[int(key)] = _number(entry.get("logprob"))
            if (rank := _whole(entry.get("rank"))) is not None:
                ranked.append((rank, entries[int(key)]))
            if int(key) == token:
                texts.append(_text(entry.get("decoded_token")) or "")
        if token not in entries:
            raise UnreadableError("prompt_logprobs lacks the prompt's own tokens: it reads other tokens than were sent")
        rows.append((token, entries[token], list(entries.items())))
        is_ordered &= _is_descending([value for _, value in sorted(ranked, key=lambda each: each[0])])
    return _with(_answer(rows, top), content, ["", *texts] if all(texts) else None, is_ordered)


def _with(answer: Answer, content: object, texts: Sequence[str] | None, is_ordered: bool = True) -> Answer:
    """Add what a completion says of itself."""
    model = _text(_mapping(content, "JSON object").get("model"))
    named = None if texts is None else tuple(texts)
    return replace(answer, model=model, read=_read_count(content), texts=named, is_ordered=is_ordered)


def _vllm_sample(model: str, prompt: Prompt, count: int, temperature: float, seed: int) -> Json:
    more = {"top_k": 0, "min_p": 0.0, "ignore_eos": True, "return_token_ids": True}
    return {**_echo_sample(model, prompt, count, temperature, seed), **more}


def _vllm_tokens(content: object, vocabulary: Vocabulary) -> Sample:
    given = _choice(content).get("token_ids")
    if given is None:
        return _echo_tokens(content, vocabulary)
    return Sample(_ids(given), _text(_mapping(content, "JSON object").get("model")))


def _ids(value: object) -> tuple[int, ...]:
    tokens = [_whole(each) for each in _list(value, "token ids")]
    if None in tokens:
        raise UnreadableError("the answer's token ids are no whole numbers")
    return tuple(token for token in tokens if token is not None)


# The completions API


def _echo_score(model: str, prompt: Prompt, top: int) -> Json:
    return {"model": model, "prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": top, **NEUTRAL}


def _echo_answer(content: object, tokens: Sequence[int], top: int, vocabulary: Vocabulary) -> Answer:
    given = _mapping(_choice(content).get("logprobs"), "logprobs")
    texts = [_text(each) or "" for each in _list(given.get("tokens"), "logprobs.tokens")]
    own = _list(given.get("token_logprobs"), "logprobs.token_logprobs")
    likeliest = given.get("top_logprobs")
    tops = likeliest if isinstance(likeliest, list) else [None] * len(own)
    if len(own) < len(tokens):
        raise UnreadableError(
            f"echo is ignored: {len(own)} log-probabilities came back for a prompt of {len(tokens)} tokens"
        )
    if not len(texts) == len(own) == len(tops):
        raise UnreadableError("the lists in logprobs have different lengths")
    name = vocabulary.names(texts[: len(tokens)], tokens)
    rows: list[Row] = []
    for position in range(1, len(tokens)):
        value, likely = _number(own[position]), tops[position]
        entries: list[tuple[int | None, float]] = []
        for text, given_value in (likely if isinstance(likely, Mapping) else {}).items():
            of_token = _number(given_value)
            # A text of several tokens has the value of one of them: perhaps that of the window's own.
            is_own = text == texts[position] and of_token == value
            entries.append((tokens[position] if is_own else name(str(text)), of_token))
        rows.append((tokens[position], value, entries))
    answer = _with(_answer(rows, top), content, texts[: len(tokens)])
    # Tokens with the same text overwrite each other, and what is lost bounds nothing.
    is_whole = np.array([len(entries) >= top for _, _, entries in rows])
    return replace(answer, cap=np.where(is_whole, answer.cap, 0.0))


def _echo_sample(model: str, prompt: Prompt, count: int, temperature: float, seed: int) -> Json:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": count,
        "temperature": temperature,
        "top_p": 1.0,
        "seed": seed,
        "logprobs": 1,
    }


def _echo_tokens(content: object, vocabulary: Vocabulary) -> Sample:
    given = _mapping(_choice(content).get("logprobs"), "logprobs")
    tokens = [vocabulary.token(_text(each) or "") for each in _list(given.get("tokens"), "logprobs.tokens")]
    if None in tokens:
        raise UnreadableError("a sampled token's text names no token, or several")
    known = tuple(token for token in tokens if token is not None)
    return Sample(known, _text(_mapping(content, "JSON object").get("model")))


# SGLang


def _sglang_score(_model: str, prompt: Prompt, top: int) -> Json:
    return {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": 1, **NEUTRAL},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": top,
    }


def _sglang_answer(content: object, tokens: Sequence[int], top: int, _vocabulary: Vocabulary) -> Answer:
    meta = _mapping(_mapping(content, "JSON object").get("meta_info"), "meta_info")
    own = _list(meta.get("input_token_logprobs"), "input_token_logprobs")
    if len(own) != len(tokens):
        raise UnreadableError(f"the answer has input_token_logprobs of {len(own)} tokens, not {len(tokens)}")
    likeliest = meta.get("input_top_logprobs")
    tops = likeliest if isinstance(likeliest, list) and likeliest else [None] * len(own)
    if len(tops) != len(own):
        raise UnreadableError("input_token_logprobs and input_top_logprobs have different lengths")
    read: list[int] = []
    rows: list[Row] = []
    for entry, likely in zip(own, tops, strict=True):
        value, token = _pair(entry)
        read.append(token)
        rows.append((token, value, [_pair(each)[::-1] for each in likely] if isinstance(likely, list) else []))
    answer = _answer(rows[1:], top)
    is_ordered = all(_is_descending([value for _, value in entries]) for _, _, entries in rows)
    return replace(answer, read=len(read), tokens=tuple(read), is_ordered=is_ordered)


def _pair(entry: object) -> tuple[float, int]:
    """Read [log-probability, id, text]."""
    values = _list(entry, "log-probability of a token")
    token = _whole(values[1]) if len(values) > 1 else None
    if token is None:
        raise UnreadableError("a log-probability has no token id")
    return _number(values[0]), token


def _sglang_sample(_model: str, prompt: Prompt, count: int, temperature: float, seed: int) -> Json:
    params = {
        "max_new_tokens": count,
        "temperature": temperature,
        "top_p": 1.0,
        "ignore_eos": True,
        "sampling_seed": seed,
    }
    return {"input_ids": prompt, "sampling_params": params, "return_logprob": True}


def _sglang_tokens(content: object, _vocabulary: Vocabulary) -> Sample:
    meta = _mapping(_mapping(content, "JSON object").get("meta_info"), "meta_info")
    entries = _list(meta.get("output_token_logprobs"), "output_token_logprobs")
    return Sample(tuple(_pair(entry)[1] for entry in entries))


# llama-server

PLAIN_SAMPLERS = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "cache_prompt": True,
}


def _llama_score(_model: str, prompt: Prompt, top: int) -> Json:
    return {"prompt": prompt, "n_predict": 1, "n_probs": top, "temperature": 0.0, **PLAIN_SAMPLERS}


def _llama_answer(content: object, tokens: Sequence[int], top: int, _vocabulary: Vocabulary) -> Answer:
    """Read what comes after a prefix of ``tokens`` without the last, which is the target."""
    answered = _mapping(content, "JSON object")
    positions = _list(answered.get("completion_probabilities"), "completion_probabilities")
    if len(positions) != 1:
        raise UnreadableError(f"completion_probabilities has {len(positions)} tokens, not 1")
    entries = [_entry(each) for each in _list(_mapping(positions[0], "token").get("top_logprobs"), "top_logprobs")]
    target = dict(entries).get(tokens[-1], np.nan)
    answer = _answer([(tokens[-1], target, entries)], top)
    read = _whole(answered.get("tokens_evaluated"))
    return replace(
        answer,
        model=_text(answered.get("model")),
        read=None if read is None else read + 1,
        is_ordered=_is_descending([value for _, value in entries]),
    )


def _entry(value: object) -> tuple[int, float]:
    given = _mapping(value, "log-probability of a token")
    token = _whole(given.get("id"))
    if token is None:
        raise UnreadableError("top_logprobs has no token ids")
    return token, _number(given.get("logprob"))


def _llama_sample(_model: str, prompt: Prompt, count: int, temperature: float, seed: int) -> Json:
    return {
        "prompt": prompt,
        "n_predict": count,
        "temperature": temperature,
        "seed": seed,
        "ignore_eos": True,
        "return_tokens": True,
        **PLAIN_SAMPLERS,
    }


def _llama_tokens(content: object, _vocabulary: Vocabulary) -> Sample:
    answered = _mapping(content, "JSON object")
    return Sample(_ids(answered.get("tokens")), _text(answered.get("model")))


DIALECTS = {
    "prompt_logprobs": Dialect("/completions", _vllm_score, _vllm_sample, _vllm_answer, _vllm_tokens, takes_text=True),
    "echo": Dialect("/completions", _echo_score, _echo_sample, _echo_answer, _echo_tokens, takes_text=True),
    "sglang": Dialect("/generate", _sglang_score, _sglang_sample, _sglang_answer, _sglang_tokens),
    "llama_cpp": Dialect("/completion", _llama_score, _llama_sample, _llama_answer, _llama_tokens, per_position=True),
}
"""By name, in the order in which they are tried."""
