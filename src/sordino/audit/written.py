"""A served model of which only generated text is seen, as the subject of a label-only audit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from sordino.attacks.base import Task
from sordino.audit.continuations import Beginning, generated, sampled_texts, text_after
from sordino.audit.halves import Half, allowance, halves
from sordino.audit.settings import ExternalConfig
from sordino.completions import Completions, Unsupported
from sordino.config import ModelConfig
from sordino.errors import AuditError
from sordino.evidence import digest
from sordino.records import Example
from sordino.results import Notice, encode
from sordino.run import Run
from sordino.serialize import Serializer
from sordino.signals import Generated, Signals, Statistics

__all__ = ["Written"]

Tick = Callable[[int], None]
Ticker = Callable[[str, int], Tick]


class Written:
    """Continuations of records by a served model and, where there is one, by its untuned base.

    The base is on the same server (`base_served`) or is loaded here. The server is believed about what it
    serves; a `serializer` is wanted only for its chat template.
    """

    trained_here = False
    task: Task = "causal-lm"
    gives = frozenset({"samples"})

    def __init__(self, run: Run, config: ExternalConfig, server: Completions, serializer: Serializer | None) -> None:
        """Ask nothing yet."""
        self.run, self.config, self.card = run, config, run.card
        self.server, self.serializer = server, serializer
        self.has_base = config.base is not None
        self.notices: tuple[Notice, ...] = ()

    def manifest(self) -> dict[str, str]:
        """Which server and model, and what of them was seen."""
        named = {name: str(self.card.model[name]) for name in ("endpoint", "path", "base", "serializer")}
        return named | {"access": "generated text", "samples": str(self.config.samples)}

    def signals(self, examples: Sequence[Example], ticker: Ticker) -> tuple[Signals, Signals | None]:
        """What both models wrote after the first half of each record; None where there is no untuned one."""
        found, notices = halves(self.config, examples, self.serializer)
        tuned = self._asked(self.server, found, ticker("model, generated text", self._count(found)))
        repeated = sum(len(s) > 1 and len(set(s)) == 1 and bool(s[0].strip()) for s in tuned.samples)
        if repeated > len(found) // 2:
            message = (
                f"All samples of {repeated} of {len(found)} records are the same: the model knows them by heart, or "
                "the server heeds no temperature, and one sample says less than many."
            )
            notices.append(Notice(kind="same-samples", count=repeated, message=message))
        self.notices = tuple(notices)
        names, texts = tuple(e.record.id for e in examples), tuple(half.text for half in found)
        mine = Signals(record_ids=names, texts=texts, statistics=_untold(len(found)), generated=tuned)
        if not self.has_base:
            return mine, None
        label = ticker("untuned model, generated text", self._count(found))
        if self.config.base_served:
            theirs = self._asked(replace(self.server, model=str(self.config.base)), found, label)
        else:
            theirs = self._here(found, label)
        untuned = replace(mine, generated=theirs)
        return replace(mine, base=untuned), replace(untuned, base=untuned)

    def _count(self, found: Sequence[Half]) -> int:
        return (self.config.samples + 1) * sum(bool(half.remainder) for half in found)

    def _asked(self, server: Completions, found: Sequence[Half], tick: Tick) -> Generated:
        """From a server, each answer kept, so that only what is missing is asked."""
        tried = [(half.prompt, allowance(half.remainder)) for half in found if half.remainder]
        likeliest = [{"prompt": p, "max_tokens": n, "temperature": 0} for p, n in tried]
        drawn = [
            {"prompt": p, "max_tokens": n, "temperature": 1, "seed": self.config.seed + k}
            for p, n in tried
            for k in range(self.config.samples)
        ]
        try:
            greedy = [str(a["text"]) for a in server.ask(likeliest, tick)]
            try:
                server.ask(drawn[:1])
            except Unsupported:
                # Some servers take no seed. If it was something else, they say so again.
                server = replace(server, unsent=("seed",))
            samples = [str(a["text"]) for a in server.ask(drawn, tick)]
        except Unsupported as error:
            message = f"{server.address} refuses a question: {error.args[0]}."
            raise AuditError(message, "If a record is too long for it, set --max_length (in words) lower.") from error
        return _generated(found, samples, greedy)

    def _here(self, found: Sequence[Half], tick: Tick) -> Generated:
        """From the base's weights here, kept as a whole."""
        tried = [half for half in found if half.remainder]
        texts = (part for half in tried for part in (half.prompt, half.remainder))
        asked = (str(self.card.model["base"]), str(self.config.seed), str(self.config.samples))
        name = f"written/{digest('written/2', *asked, *texts)}.json"
        path = self.run.private / name
        if not path.exists():
            self.run.write_private(name, encode(self._compute(tried)))
        samples, greedy = msgspec.json.decode(path.read_bytes(), type=tuple[list[str], list[str]])
        tick(self._count(found))
        return _generated(found, samples, greedy)

    def _compute(self, tried: Sequence[Half]) -> tuple[list[str], list[str]]:
        from sordino.deployed import context_of, fetch, load_deployed
        from sordino.generate import greedy

        asked = ModelConfig(
            path=str(self.config.base), remote_code=self.config.model.remote_code, device=self.config.model.device
        )
        folder = fetch(asked)
        model = load_deployed(asked, folder, dtype=self.config.dtype)
        prefixes, lengths = _encoded(tried, model.tokenizer, context_of(folder))
        beginnings = [
            Beginning(ids=ids, length=length, seed=i)
            for i, (ids, length) in enumerate(zip(prefixes, lengths, strict=True))
        ]
        drawn = sampled_texts(model, beginnings, self.config.samples, self.config.seed)
        likeliest = greedy(model, prefixes, lengths)
        pairs = zip(prefixes, likeliest, strict=True)
        return [t for texts in drawn for t in texts], [
            text_after(model.tokenizer, prefix, ids) for prefix, ids in pairs
        ]


def _encoded(tried: Sequence[Half], tokenizer: Any, context: int | None) -> tuple[list[np.ndarray], list[int]]:
    """Prompts as tokens of the base, and tokens enough for what follows, within its `context`."""
    prefixes, lengths = [], []
    for half in tried:
        ids = list(tokenizer(half.prompt, add_special_tokens=False, verbose=False)["input_ids"])
        ids = ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]
        length = min(allowance(half.remainder), (context or 1 << 30) - 1)
        # Of a prompt that is too long the end is what counts.
        ids = ids[-(context - length) :] if context is not None else ids
        prefixes.append(np.array(ids, dtype=np.int64))
        lengths.append(length)
    return prefixes, lengths


def _generated(found: Sequence[Half], samples: Sequence[str], greedy: Sequence[str]) -> Generated:
    many = max(1, len(samples) // max(1, len(greedy)))
    return generated(found, [tuple(samples[i : i + many]) for i in range(0, len(samples), many)], greedy)


def _untold(records: int) -> Statistics:
    """Statistics of no token at all."""
    none, number = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
    return Statistics(
        offsets=np.zeros(records + 1, dtype=np.int64), position=none, token=none, logprob=number, mean=number,
        variance=number, rank=none, top=none,
    )  # fmt: skip
