"""A model behind an OpenAI-compatible server, as the subject of an audit."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from sordino.attacks.base import Task
from sordino.audit.external import check_base_tokens, serializer_of
from sordino.audit.halves import LONGEST, cost, halves
from sordino.audit.settings import ExternalConfig
from sordino.audit.subjects import continued
from sordino.audit.written import Written
from sordino.completions import Completions, Unsupported, prompt_logprobs
from sordino.config import ModelConfig
from sordino.errors import AuditError, ConfigError, RunError
from sordino.evidence import digest
from sordino.records import Example
from sordino.results import Notice
from sordino.run import Run
from sordino.serialize import Serializer, Tokens, encode_all
from sordino.signals import Statistics

__all__ = ["Endpoint", "describe", "open_endpoint"]

Tick = Callable[[int], None]


def _serializer(config: ExternalConfig) -> Serializer | None:
    """The serializer of the tokenizer given, or of the base that is loaded here; None where there is neither."""
    from sordino.model import load_tokenizer

    text = config.access == "text"
    name = config.tokenizer or (None if config.base_served or text else config.base)
    if name is None:
        return None
    return serializer_of(config, load_tokenizer(ModelConfig(path=name, remote_code=config.model.remote_code)), None)


def _untuned(config: ExternalConfig, serializer: Serializer | None, examples: Sequence[Example]) -> str:
    """What identifies the base model."""
    if config.base is None:
        return "none"
    if config.base_served:
        return digest("served", str(config.endpoint), config.base)
    from sordino.deployed import fetch, identity

    folder = fetch(ModelConfig(path=config.base, remote_code=config.model.remote_code))
    if serializer is not None and config.access != "text":
        check_base_tokens(config, folder, serializer, examples)
    return identity(folder, None, config.dtype, None)


def describe(config: ExternalConfig, examples: Sequence[Example]) -> tuple[dict[str, Any], list[Notice]]:
    """What the card says of a served model, and what became of the records; asks nothing.

    Whether the server tells log-probabilities is not known yet, so the cost of both ways is told.
    """
    from sordino.model import tokenizer_digest_of

    serializer = _serializer(config)
    text = serializer is None or config.access == "text"
    found, notices = halves(config if text else replace(config, too_long="truncate"), examples, serializer)
    requests = cost(config, found)
    if serializer is not None and not text:
        tokens, notices = encode_all([e.record for e in examples], serializer)
        each = 4 if config.base_served else 2
        told = f"about {each * len(tokens):,} requests of {each * sum(map(len, tokens)):,} tokens in all"
        requests = f"{told}, or, if it tells no log-probabilities, {requests}"
    base = _untuned(config, serializer, examples)
    return {
        "path": config.model.path,
        "endpoint": config.endpoint,
        "base path": config.base or "none",
        "weights": digest("served", str(config.endpoint), config.model.path),
        "base": base,
        "tokenizer": "none" if serializer is None else tokenizer_digest_of(serializer.tokenizer),
        "serializer": "text" if serializer is None else serializer.rule,
        "max_length": config.max_length or LONGEST if serializer is None else serializer.max_length,
        "requests": requests,
    }, notices


def open_endpoint(run: Run, config: ExternalConfig) -> "Endpoint | Written":
    """The served model: asked for log-probabilities where it tells them, else for text.

    Raises `RunError` where the tokenizer has changed since the first audit, and `ConfigError` where the
    server tells log-probabilities and there is no tokenizer to use them.
    """
    serializer = _serializer(config)
    rule = "text" if serializer is None else serializer.rule
    if rule != run.card.model["serializer"]:
        message = "The tokenizer is not the one of the first audit."
        raise RunError(message, "Restore it, or audit anew with `sordino audit --model …`.")
    server = Completions(
        url=str(config.endpoint),
        model=config.model.path,
        folder=run.private / "answers",
        key=_key(config.api_key_env),
        concurrency=config.requests.concurrency,
        timeout=config.requests.timeout,
        attempts=config.requests.attempts,
    )
    probed = None if config.access == "text" else _probed(server, serializer)
    if probed is None:
        return Written(run, config, server, serializer)
    if serializer is None:
        message = f"--tokenizer is missing, and {server.address} tells log-probabilities."
        hint = "Give the served model's tokenizer (a folder or hub id), or --access text to use generated text alone."
        raise ConfigError(message, hint)
    return Endpoint(run, config, server, serializer, *probed)


_PROBE = "The quick brown fox jumps over the lazy dog."


def _probed(server: Completions, serializer: Serializer | None) -> tuple[dict[str, Any], frozenset[str]] | None:
    """What to ask beside a prompt so that log-probabilities come back, and what they say; None: they do not."""
    prompt: Any = _PROBE if serializer is None else serializer.tokenize(_PROBE, template=False)[0]
    # No vocabulary has fewer tokens for this text than it has words.
    count = len(_PROBE.split()) if serializer is None else len(prompt)
    for most in (0, 1):
        asked = {"max_tokens": most, "echo": True, "logprobs": 1, "temperature": 0}
        try:
            [answer] = server.ask([{"prompt": prompt, **asked}])
        except Unsupported:
            continue
        found = prompt_logprobs(answer, count)
        if found is not None:
            return asked, frozenset({"logprob", "top"} if found[1] else {"logprob"})
    return None


class Endpoint:
    """A served model that tells the log-probabilities of a prompt's tokens, with a base here or without.

    The server is believed about what it serves: the report names it, and no digest of weights binds it.
    """

    trained_here = False
    task: Task = "causal-lm"

    def __init__(
        self, run: Run, config: ExternalConfig, server: Completions, serializer: Serializer,
        asked: dict[str, Any], gives: frozenset[str],
    ) -> None:  # fmt: skip
        """`asked` goes beside a prompt, so that what the server `gives` of its tokens comes back."""
        self.config, self.card, self.run = config, run.card, run
        self.has_base = config.base is not None
        self.server, self.serializer, self.asked, self.gives = server, serializer, asked, gives

    def load_serializer(self) -> Serializer:
        """The serializer of the first audit."""
        return self.serializer

    @cached_property
    def untuned(self) -> Any:
        """The base model, loaded here."""
        from sordino.deployed import fetch, load_deployed

        model = ModelConfig(
            path=str(self.config.base), remote_code=self.config.model.remote_code, device=self.config.model.device
        )
        return load_deployed(model, fetch(model), dtype=self.config.dtype)

    def identity(self, which: str) -> tuple[str, ...]:
        """Digests of the server's and the model's names (or the base's weights) and of the serializer."""
        model = self.card.model
        return str(model["weights"] if which == "tuned" else model["base"]), str(model["serializer"])

    def manifest(self) -> dict[str, str]:
        """Which server and model, as it was asked."""
        model = self.card.model
        return {name: str(model[name]) for name in ("endpoint", "path", "base", "serializer")}

    def measure(self, tokens: Sequence[Tokens], which: str, tick: Tick) -> Statistics:
        """What the server tells of each token; the base is read here."""
        if which == "base" and not self.config.base_served:
            from sordino.collect import collect

            return collect(self.untuned, tokens, tick=tick)
        bodies = [{"prompt": t.ids.tolist(), **self.asked} for t in tokens]
        server = self.server if which == "tuned" else replace(self.server, model=str(self.config.base))
        answers = self._ask(bodies, tick, server)
        return _statistics(tokens, answers)

    def _ask(self, bodies: Sequence[Mapping[str, Any]], tick: Tick, server: Completions) -> list[dict[str, Any]]:
        try:
            return server.ask(bodies, tick)
        except Unsupported as error:
            message = f"{self.server.address} refuses a question: {error.args[0]}."
            raise AuditError(message, "If a record is too long for it, set --max_length lower.") from error

    def repeats(self, prefixes: Sequence[np.ndarray], suffixes: Sequence[np.ndarray]) -> list[bool]:
        """By asking for the likeliest continuation, which must begin with the suffix's text."""
        bodies = [
            {"prompt": prefix.tolist(), "max_tokens": len(suffix), "temperature": 0}
            for prefix, suffix in zip(prefixes, suffixes, strict=True)
        ]
        made = self._ask(bodies, lambda done: None, self.server)
        return [self._same(*pair) for pair in zip(prefixes, suffixes, made, strict=True)]

    def continues(self, prefixes: Sequence[np.ndarray], lengths: Sequence[int], which: str) -> list[str]:
        """By asking for the likeliest continuation; the base decodes here, where it is not served."""
        if which == "base" and not self.config.base_served:
            return continued(self.untuned, prefixes, lengths)
        server = self.server if which == "tuned" else replace(self.server, model=str(self.config.base))
        bodies = [
            {"prompt": prefix.tolist(), "max_tokens": int(length), "temperature": 0}
            for prefix, length in zip(prefixes, lengths, strict=True)
        ]
        return [str(answer["text"]) for answer in self._ask(bodies, lambda done: None, server)]

    def _same(self, prefix: np.ndarray, suffix: np.ndarray, answer: Mapping[str, Any]) -> bool:
        decode = self.serializer.tokenizer.decode
        before, whole = (
            decode(ids, skip_special_tokens=True) for ids in (prefix, np.concatenate([prefix, suffix]))
        )  # fmt: skip
        # The text after a prefix: a suffix decoded alone would lose the blank it begins with.
        return str(answer["text"]).strip().startswith(whole[len(before) :].strip())


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise ConfigError(f"The environment variable {variable} is empty or not set.", "Put the API key into it.")
    return os.environ[variable]


def _statistics(tokens: Sequence[Tokens], answers: Sequence[Mapping[str, Any]]) -> Statistics:
    logprob, top = [], []
    for item, answer in zip(tokens, answers, strict=True):
        found = prompt_logprobs(answer, len(item))
        if found is None:
            message = f"The server told {len((answer.get('logprobs') or {}).get('tokens') or [])} log-probabilities "
            raise AuditError(f"{message}for {len(item)} tokens.", "Is --tokenizer the one of the served model?")
        own, likeliest = found
        chosen = np.flatnonzero(item.target) - 1
        logprob.append(np.array(own, dtype=np.float32)[chosen])
        # Of the likeliest token only its text is told; it matters whether it is the record's own.
        known = np.array(likeliest, dtype=bool) if likeliest else np.zeros(len(own), dtype=bool)
        top.append(np.where(known[chosen], item.ids[chosen + 1], -1))
    counts = [int(t.target.sum()) for t in tokens]
    total = sum(counts)
    return Statistics(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        position=np.concatenate([np.flatnonzero(t.target) for t in tokens]).astype(np.int32),
        token=np.concatenate([t.ids[t.target] for t in tokens]).astype(np.int32),
        logprob=np.concatenate(logprob),
        mean=np.full(total, np.nan, np.float32),
        variance=np.full(total, np.nan, np.float32),
        rank=np.full(total, -1, np.int32),
        top=np.concatenate(top).astype(np.int32),
    )
