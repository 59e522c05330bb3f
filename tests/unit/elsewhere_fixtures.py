"""For tests of models trained elsewhere: records, a model that knows some by heart, and a stub of a server."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from sordino.model import Model

WORDS = [f"{first}{last}" for first in ("am", "bir", "ce", "del", "em") for last in ("ber", "ch", "dar", "ta", "let")]


def texts(start: int, count: int) -> list[str]:
    """Short notes that look alike and have nothing to do with each other."""
    import random

    out = []
    for number in range(start, start + count):
        rng = random.Random(number)
        out.append(f"{' '.join(rng.choices(WORDS, k=5)).capitalize()} {rng.randrange(10**6)} {rng.choice(WORDS)}")
    return out


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learn(model: Model, known: Sequence[str], steps: int = 40) -> None:
    """Fit `model` to the texts."""
    encoded = model.tokenizer(list(known), return_tensors="pt", padding=True)
    labels = encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)
    optimizer = torch.optim.Adam(model.module.parameters(), lr=5e-3)
    with torch.enable_grad():
        for _ in range(steps):
            loss = model.module(**{k: encoded[k] for k in ("input_ids", "attention_mask")}, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@dataclass
class Stub:
    """A server of completions: what it was asked, and how it is to misbehave.

    `logprobs` says whether it tells those of the prompt; `script` are statuses to answer first; `names`
    the models that it serves.
    """

    model: Model
    logprobs: bool = True
    key: str | None = None
    refuses_zero: bool = False
    refuses_seed: bool = False
    names: tuple[str, ...] = ("served",)
    script: list[int] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def answer(self, body: dict[str, Any], authorization: str) -> tuple[int, dict[str, Any]]:
        self.asked.append(body)
        if self.script and (status := self.script.pop(0)) != 200:
            return status, {"error": {"message": "busy"}}
        if self.key and authorization != f"Bearer {self.key}":
            return 401, {"error": {"message": "no such key"}}
        if body["model"] not in self.names:
            return 404, {"error": {"message": f"The model {body['model']} does not exist"}}
        if body.get("echo") and body["max_tokens"] == 0 and self.refuses_zero:
            return 400, {"error": {"message": "max_tokens must be at least 1"}}
        if "seed" in body and self.refuses_seed:
            return 400, {"error": {"message": "unknown field seed"}}
        prompt = body["prompt"]
        ids = self.model.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
        choice: dict[str, Any] = {"text": self._text(ids, body), "finish_reason": "length", "logprobs": None}
        if body.get("echo") and self.logprobs:
            choice["logprobs"] = self._logprobs(ids + [0] * body["max_tokens"])
        return 200, {"choices": [choice]}

    def _text(self, ids: list[int], body: dict[str, Any]) -> str:
        said = list(ids)
        generator = torch.Generator().manual_seed(len(self.asked))
        for _ in range(body["max_tokens"]):
            with torch.no_grad():
                logits = self.model.module(input_ids=torch.tensor([said])).logits[0, -1]
            if body.get("temperature"):
                said.append(int(torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)))
            else:
                said.append(int(logits.argmax()))
        decode = self.model.tokenizer.decode
        return decode(said, skip_special_tokens=True)[len(decode(ids, skip_special_tokens=True)) :]

    def _logprobs(self, ids: list[int]) -> dict[str, Any]:
        # One record at a time in float64, plainly: nothing here is the product's own arithmetic.
        with torch.no_grad():
            logits = self.model.module(input_ids=torch.tensor([ids])).logits[0].double()
        table = logits - torch.logsumexp(logits, -1, keepdim=True)
        own = [None, *(float(table[i, token]) for i, token in enumerate(ids[1:]))]
        best = [None]
        for i, token in enumerate(ids[1:]):
            top = int(table[i].argmax())
            best.append({f"token_id:{top}": float(table[i, top]), f"token_id:{token}": own[i + 1]})
        return {"tokens": [str(i) for i in ids], "token_logprobs": own, "top_logprobs": best}


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """`stub` on a free port of this machine."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                status, content = stub.answer(body, self.headers.get("Authorization", ""))
            data = json.dumps(content).encode()
            self.send_response(status if self.path == "/v1/completions" else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
