"""An OpenAI-compatible server's completions: log-probabilities of a prompt's tokens, and generated text.

POST /v1/completions with `echo` and `logprobs` gives the former on servers that allow it (vLLM does;
most others give generated text only). Prompts are token ids where a tokenizer is at hand, so that what is
scored is what was meant. Answers are kept on disk under a digest of the question: nothing is asked twice.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sordino.errors import AuditError
from sordino.evidence import digest

__all__ = ["Completions", "Unsupported", "prompt_logprobs"]

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0

Body = Mapping[str, Any]
Tick = Callable[[int], None]


class Unsupported(Exception):
    """The server answered, but refuses this kind of question (400, 404, 422): `args[0]` says how."""


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Questions to one model of one server; `folder` keeps the answers.

    `url` is the base that ends in /v1 (it is added where it is missing); `key` goes into the header
    of each request and nowhere else; `wait` sleeps between attempts. Certificates are verified.
    `unsent` are fields that tell questions apart and are not sent, such as a `seed` the server refuses.
    """

    url: str
    model: str
    folder: Path
    key: str | None = field(default=None, repr=False)
    concurrency: int = 4
    timeout: float = 60.0
    attempts: int = 6
    wait: Callable[[float], None] = time.sleep
    unsent: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """Where completions are asked for."""
        base = self.url.rstrip("/")
        return f"{base if base.endswith('/v1') else base + '/v1'}/completions"

    def known(self, bodies: Sequence[Body]) -> int:
        """How many of these questions have an answer already."""
        return sum(self._path(body).exists() for body in bodies)

    def ask(self, bodies: Sequence[Body], tick: Tick = lambda done: None) -> list[dict[str, Any]]:
        """The answers to `bodies`, each kept as soon as it is there, so that an interrupted audit resumes.

        Raises `Unsupported` where the server refuses such questions, and `AuditError` where it cannot be
        reached, does not know the key or the model, or gives no usable answer after all attempts.
        """
        import httpx2

        answers: dict[int, dict[str, Any]] = {i: found for i, found in self._kept(bodies)}
        tick(len(answers))
        missing = [i for i in range(len(bodies)) if i not in answers]
        if missing:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            limits = httpx2.Limits(max_connections=self.concurrency)
            with (
                httpx2.Client(headers=headers, timeout=self.timeout, limits=limits) as client,
                ThreadPoolExecutor(self.concurrency) as pool,
            ):
                asked = {pool.submit(self._one, client, bodies[i]): i for i in missing}
                try:
                    for done in as_completed(asked):
                        answers[asked[done]] = done.result()
                        tick(1)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        return [answers[i] for i in range(len(bodies))]

    def _kept(self, bodies: Sequence[Body]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, body in enumerate(bodies):
            path = self._path(body)
            if path.exists():
                yield i, json.loads(path.read_bytes())

    def _path(self, body: Body) -> Path:
        key = digest(self.address, self.model, json.dumps(body, sort_keys=True), *self.unsent)
        return self.folder / key[:2] / f"{key}.json"

    def _one(self, client: Any, body: Body) -> dict[str, Any]:
        from sordino.run import write_atomic

        sent = {name: value for name, value in body.items() if name not in self.unsent}
        choice = self._checked(self._post(client, {"model": self.model, **sent}))
        path = self._path(body)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(path, json.dumps(choice).encode(), mode=0o600)
        return choice

    def _post(self, client: Any, body: Body) -> Any:
        import httpx2

        trouble, pause = "", _FIRST_WAIT
        for attempt in range(self.attempts):
            if attempt:
                self.wait(pause)
            pause = min(_LONGEST_WAIT, 2 * pause)
            try:
                answer = client.post(self.address, json=body)
            except httpx2.ConnectError as error:
                # A server that is not there will not be there in a second: but one that restarts may.
                trouble = f"no connection ({error})"
            except httpx2.TransportError as error:
                trouble = f"{type(error).__name__} ({error})"
            except httpx2.InvalidURL as error:
                raise AuditError(
                    f"{self.url!r} is no URL: {error}.", "Give one such as http://host:8000/v1."
                ) from error
            else:
                if answer.status_code not in _AGAIN:
                    return answer
                trouble = f"status {answer.status_code}: {_said(answer)}"
                pause = _asked_to_wait(answer) or pause
        message = f"{self.address} gave no answer in {self.attempts} attempts: {trouble}."
        raise AuditError(message, "Is the server up? Answers so far are kept; the same command goes on from there.")

    def _checked(self, answer: Any) -> dict[str, Any]:
        code = answer.status_code
        if code in (401, 403):
            message = f"{self.address} refuses access ({code}): {_said(answer)}."
            raise AuditError(message, "Give the name of the environment variable with the key: --api-key-env NAME.")
        if code == 404:
            message = f"{self.address} does not know the model {self.model!r} (404): {_said(answer)}."
            raise AuditError(message, "Give --model as the server names it (GET /v1/models), and the URL up to /v1.")
        if code in (400, 422, 501):
            raise Unsupported(_said(answer))
        if code != 200:
            raise AuditError(f"{self.address} answered {code}: {_said(answer)}.", "Check the URL.")
        try:
            choice = answer.json()["choices"][0]
            if not isinstance(choice["text"], str):
                raise TypeError("its text is no text")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            message = f"{self.address} gave an answer that is no completion: {error!r}."
            raise AuditError(message, "Is the URL that of an OpenAI-compatible server, up to /v1?") from error
        return {name: choice.get(name) for name in ("text", "logprobs", "finish_reason")}


def _said(answer: Any) -> str:
    try:
        content = answer.json()
        error = content.get("error", content)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = answer.text
    return " ".join(text.split())[:200] or "no reason given"


def _asked_to_wait(answer: Any) -> float | None:
    try:
        return min(_LONGEST_WAIT, max(0.0, float(answer.headers["retry-after"])))
    except (KeyError, ValueError):
        return None


def prompt_logprobs(choice: Mapping[str, Any], count: int) -> tuple[list[float], list[bool]] | None:
    """Ln p of the prompt's tokens but the first (count − 1), and whether each was the likeliest one.

    None where the answer has none, or not one for each of the `count` tokens that were sent.
    """
    found = choice.get("logprobs") or {}
    values, tops = found.get("token_logprobs"), found.get("top_logprobs")
    if not isinstance(values, list) or len(values) < count or any(v is None for v in values[1:count]):
        return None
    own = [float(v) for v in values[1:count]]
    if not isinstance(tops, list) or len(tops) < count or any(not t for t in tops[1:count]):
        return own, []
    return own, [mine >= max(top.values()) for mine, top in zip(own, tops[1:count], strict=True)]
