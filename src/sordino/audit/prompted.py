"""Prompts of records drawn by coins, and what a model here says of records after them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from sordino.attacks.words import first
from sordino.audit.collecting import Collector
from sordino.audit.continuations import text_after
from sordino.audit.halves import LONGEST, Half, half_of
from sordino.audit.shots import BETWEEN
from sordino.audit.subjects import Trained
from sordino.errors import AuditError
from sordino.evidence import digest
from sordino.records import Example, Split
from sordino.records.placed import where
from sordino.results import Notice, encode
from sordino.serialize import Serializer, Tokens
from sordino.signals import Generated, Ragged, Signals, Statistics

__all__ = ["FEWEST", "Prompted", "draw", "signals_of"]

FEWEST = 10
"""Prompts below which no interval over them is told."""

_DEFINITION = "prompted/1"
# Tokens written beyond those of the true remainder, and tokens by which a cut text may be longer than it was whole.
_MORE, _SLACK = 8, 4
# Prompts whose records are decoded together, those of one length in a batch; between pieces progress is told.
_PIECE = 32


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """Trials, one after the other: `examples` (n) in blocks of 2k, of which a coin put k into the trial's prompt.

    `tokens` (n) are the records without the tokens that frame them, `halves` (n) their texts; `member` (n) says who
    stood in the prompt, `trial` (n) in which block they are; `prompts` (trials) are tokens. `notices` count
    the records that could not be drawn.
    """

    examples: Sequence[Example]
    tokens: Sequence[Tokens]
    halves: Sequence[Half]
    member: np.ndarray
    trial: np.ndarray
    prompts: Sequence[np.ndarray]
    notices: tuple[Notice, ...]

    def after(self, number: int, shift: int) -> np.ndarray:
        """The records that are read after the prompt of trial `number`: its own, or those `shift` trials before."""
        return np.flatnonzero(self.trial == (number - shift) % len(self.prompts))


def draw(collector: Collector, placed: Split, shots: int, trials: int, seed: int) -> Prompted:
    """Up to `trials` disjoint blocks of 2·`shots` records that were not trained on, no two of them of one coin group.

    Left out, and counted, are records that are cut, too short to have two halves, or so long that `shots` like
    them and one more exceed the context: whether a record is drawn does not depend on any coin. Raises `AuditError`
    where fewer than `FEWEST` blocks come together.
    """
    pool = [*where(placed.examples, "validation"), *where(placed.examples, "candidate", included=False)]
    rng = np.random.default_rng([seed, 1])
    most = _longest(collector, shots)
    shuffled = (pool[int(i)] for i in rng.permutation(len(pool)))
    found, notices = _fitting(collector, shuffled, most, trials * 2 * shots)
    count = min(trials, len(found) // (2 * shots))
    if count < FEWEST:
        message = (
            f"{len(found):,} records that were not trained on can stand in a prompt, each of a coin group of its own "
            f"and of {most:,} tokens at most, which makes {count} prompts of {shots} with as many records left out."
        )
        raise AuditError(message, f"At least {FEWEST} prompts are needed: lower --shots, or hold out more records.")
    found = found[: count * 2 * shots]
    member = rng.permuted(np.tile(np.arange(2 * shots) < shots, (count, 1)), axis=1)
    tokens = [one for _, one, _ in found]
    # In an order of its own: a record's place in the prompt says nothing about its place among those judged.
    orders = [rng.permutation(np.flatnonzero(row)) + number * 2 * shots for number, row in enumerate(member)]
    return Prompted(
        examples=[example for example, _, _ in found],
        tokens=tokens,
        halves=[half for _, _, half in found],
        member=member.ravel(),
        trial=np.repeat(np.arange(count), 2 * shots),
        prompts=[_joined([tokens[i] for i in order], collector.serializer) for order in orders],
        notices=notices,
    )


def _fitting(
    collector: Collector, examples: Iterable[Example], most: int, wanted: int
) -> tuple[list[tuple[Example, Tokens, Half]], tuple[Notice, ...]]:
    """The first `wanted` of `examples` that can be drawn, one of a coin group, and how many could not."""
    seen: set[str] = set()
    found: list[tuple[Example, Tokens, Half]] = []
    for example in examples:
        if len(found) == wanted:
            break
        if example.group in seen:
            continue
        seen.add(example.group)
        item, half = _bare(collector.encode(example), collector.serializer), _half(example, collector.serializer)
        if not item.cut and len(item) <= most and item.target[1:].any() and half.remainder:
            found.append((example, item, half))
    return found, _notices(len(seen) - len(found), len(seen), most)


def _longest(collector: Collector, shots: int) -> int:
    """How long a record may be, so that `shots` of them, and one more with what is written after it, fit."""
    subject, tokenizer = collector.reader, collector.serializer.tokenizer
    context = int(subject.card.model["context"]) if isinstance(subject, Trained) else _held(collector).context
    framing = int(tokenizer.bos_token_id is not None) + shots * len(_between(collector.serializer)) + _MORE + _SLACK
    return max(0, (context - framing) // (shots + 1))


def _held(collector: Collector) -> Any:
    """The subject, whose weights are here."""
    return collector.subject


def _between(serializer: Serializer) -> np.ndarray:
    return np.array(serializer.tokenize(BETWEEN, template=False)[0], dtype=np.int32)


def _bare(item: Tokens, serializer: Serializer) -> Tokens:
    """A record without the tokens that frame it: in a prompt it does not begin or end the text."""
    ids, tokenizer = item.ids, serializer.tokenizer
    start = int(len(ids) > 0 and ids[0] == tokenizer.bos_token_id)
    stop = len(ids) - int(len(ids) > start and ids[-1] == tokenizer.eos_token_id)
    return replace(item, ids=ids[start:stop], target=item.target[start:stop])


def _half(example: Example, serializer: Serializer) -> Half:
    whole, spans = serializer.render(example.record)
    return half_of(first(whole, LONGEST), spans)


def _first(serializer: Serializer) -> np.ndarray:
    token = serializer.tokenizer.bos_token_id
    return np.array([] if token is None else [token], dtype=np.int32)


def _joined(items: Sequence[Tokens], serializer: Serializer) -> np.ndarray:
    between = _between(serializer)
    whole = np.concatenate([_first(serializer), *(part for item in items for part in (item.ids, between))])
    return whole.astype(np.int32)


def _notices(unfit: int, seen: int, most: int) -> tuple[Notice, ...]:
    if not unfit:
        return ()
    message = (
        f"{unfit:,} of {seen:,} records looked at were not drawn: cut, of fewer than two words or of more than "
        f"{most:,} tokens, too many for that many shots in the model's context."
    )
    return (Notice(kind="not-drawn", count=unfit, message=message),)


def signals_of(collector: Collector, drawn: Prompted) -> tuple[Signals, Signals]:
    """Signals of the records after the prompts of their own trials, and after those of others, the control.

    Computed once: a second audit runs no model.
    """
    parts = [digest(p.tobytes()) for p in drawn.prompts]
    key = collector.key(drawn.examples, "tuned", _DEFINITION, *parts)
    found = collector.store.arrays(key)
    path = collector.run.private / "written" / f"{key}.json"
    alone = collector.store.get(f"{key}-alone")
    if found is None or alone is None:
        alone, found = _measure(collector, drawn)
        manifest = {"definition": _DEFINITION, "model": "tuned", "records": len(drawn.examples)}
        collector.store.put(f"{key}-alone", alone, manifest)
        collector.store.put_arrays(key, found, manifest)
    if not path.exists():
        collector.run.write_private(f"written/{key}.json", encode(_written(collector, drawn)))
    texts = msgspec.json.decode(path.read_bytes(), type=list[list[str]])
    own, other = (
        _signals(drawn, alone, np.asarray(found[name], np.float64), said)
        for name, said in zip(("own", "other"), texts, strict=True)
    )
    return own, other


def _signals(drawn: Prompted, alone: Statistics, after: np.ndarray, said: Sequence[str]) -> Signals:
    return Signals(
        record_ids=tuple(e.record.id for e in drawn.examples),
        texts=tuple(t.text for t in drawn.tokens),
        statistics=alone,
        measured={"prompt": after},
        generated=Generated(
            prompts=[h.prompt for h in drawn.halves],
            remainders=[h.remainder for h in drawn.halves],
            samples=[()] * len(said),
            greedy=said,
        ),
    )


def _measure(collector: Collector, drawn: Prompted) -> tuple[Statistics, dict[str, np.ndarray]]:
    """Statistics of the records alone, and the mean ln p a token after either prompt; each prompt is read once."""
    from sordino.collect import collect

    first_ = _first(collector.serializer)
    alone = [_behind(first_, t) if len(first_) else _masked(t) for t in drawn.tokens]
    made = collector.reader.measure(alone, "tuned", collector.ticker("model, without a prompt", len(alone)))
    found = {name: np.zeros(len(drawn.tokens)) for name in ("own", "other")}
    tick = collector.ticker("model, after prompts", 2 * len(drawn.tokens))
    for number, prompt in enumerate(drawn.prompts):
        rows = np.concatenate([drawn.after(number, shift) for shift in (0, 1)])
        # The prompt's last token comes first: it predicts the record's. What was masked alone stays so.
        items = [_behind(prompt[-1:], drawn.tokens[i] if len(first_) else _masked(drawn.tokens[i])) for i in rows]
        read = collect(_held(collector).tuned, items, after=prompt[:-1])
        means = Ragged(read.logprob, read.offsets).mean()
        half = len(rows) // 2
        found["own"][rows[:half]], found["other"][rows[half:]] = means[:half], means[half:]
        tick(len(rows))
    collector.forwards += 2
    return made, found


def _behind(before: np.ndarray, item: Tokens) -> Tokens:
    """A record behind the token `before` (1), which is not its own."""
    return replace(item, ids=np.concatenate([before, item.ids]), target=np.concatenate([[False], item.target]))


def _masked(item: Tokens) -> Tokens:
    """A record whose first token is context only, as where no token stands before it."""
    target = item.target.copy()
    target[:1] = False
    return replace(item, target=target)


def _written(collector: Collector, drawn: Prompted) -> list[list[str]]:
    """What greedy decoding writes after either prompt and the first half of each record."""
    from sordino.generate import greedy

    serializer, model = collector.serializer, _held(collector).tuned
    found = [[""] * len(drawn.tokens) for _ in range(2)]
    tick = collector.ticker("model, generated text", 2 * len(drawn.tokens))
    for start in range(0, len(drawn.prompts), _PIECE):
        numbers = range(start, min(start + _PIECE, len(drawn.prompts)))
        asked = [(shift, int(i), drawn.prompts[n]) for n in numbers for shift in (0, 1) for i in drawn.after(n, shift)]
        prefixes, lengths = [], []
        for _, i, prompt in asked:
            half, templated = drawn.halves[i], serializer.templated(drawn.examples[i].record)
            ids, _ = serializer.tokenize(half.prompt, template=templated)
            ids = ids[1:] if ids[:1] == [serializer.tokenizer.bos_token_id] else ids
            rest, _ = serializer.tokenize(half.remainder, template=False)
            prefixes.append(np.concatenate([prompt, np.array(ids, dtype=np.int32)]))
            lengths.append(max(1, min(len(rest) + _MORE, model.context - len(prefixes[-1]))))
        made = greedy(model, prefixes, lengths)
        for (shift, i, _), prefix, said in zip(asked, prefixes, made, strict=True):
            found[shift][i] = text_after(model.tokenizer, prefix, said)
        tick(len(asked))
    collector.forwards += 1
    return found
