"""Which records a model writes when it is left to: texts of its own, ranked, and looked up among all records."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from sordino.attacks.base import Attack
from sordino.attacks.extraction.generate_and_rank import Ranked, Wanted
from sordino.attacks.passages import SHORTEST
from sordino.attacks.rankings import precisions, runs
from sordino.audit.evaluate import estimate
from sordino.audit.external import External
from sordino.audit.inputs import Context, Pair
from sordino.audit.judging import Judge, attempted
from sordino.audit.parts import in_parts
from sordino.audit.repeated import Corpus, Repeated, corpus_of, repeats
from sordino.audit.subjects import Trained
from sordino.audit.weights import has_weights, weights
from sordino.audit.written import Written
from sordino.evidence import digest
from sordino.results import Attempt, Estimate, encode

__all__ = ["carry_out", "lacking"]

# So many of the texts that rank highest are judged: an adversary reads no more.
_BEST = 100
# Texts between two results on disk.
_PART = 64
_TOP_K = 40
# The run of Nasr et al. 2023; in short texts half of one is enough.
_RUN = 50
# A prompt has the token that texts begin with, and at most so many of a snippet.
_SNIPPET = 10


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A text as it was drawn: its tokens, the one that ended it among them, and what they add to the prompt's text."""

    ids: tuple[int, ...]
    text: str


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """All texts of a model and their rankings, as `Ranked` has them."""

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    strategies: tuple[str, ...]
    orders: dict[str, tuple[int, ...]]
    dropped: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A text in private/: its `places` (from 1) in the rankings that kept it, and all that it `repeats`.

    `memorised`, `others` and `longest` are those of `attacks.rankings.Runs`.
    """

    strategy: str
    ids: tuple[int, ...]
    text: str
    places: dict[str, int]
    memorised: bool
    others: bool
    longest: int
    repeats: tuple[Repeated, ...]


def lacking(context: Context) -> str:
    """Weights, a token to begin with, and room for a prompt and a text."""
    subject = context.collector.subject
    if isinstance(subject, Written) or not has_weights(subject, "tuned"):
        return "the model's weights"
    tokenizer = context.collector.serializer.tokenizer
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        return "a tokenizer with a beginning token or an end token"
    if _room(context) < SHORTEST:
        return f"a context of at least {SHORTEST + _SNIPPET + 1} tokens"
    return ""


def carry_out(context: Context, attack: Attack, pair: Pair, judge: Judge) -> Attempt:
    """The share of judged records of which a run stands in one of the texts that rank highest.

    A run counts for a record if it stands in no record of another coin: whether it counts depends on no coin, so
    that members and non-members are alike but for training. The ranking is declared, not chosen: by the untuned base
    where there is one, else by zlib. Texts of the base are the control, ranked as the model's are: to rank them by the
    base against itself would be no ranking.
    """
    plan, collector = context.plan.generated, context.collector
    has_base = pair[1] is not None and has_weights(collector.reader, "base")
    declared, length = "base" if has_base else "zlib", min(plan.tokens, _room(context))
    corpus = corpus_of(context, min(_RUN, length // 2))
    snippets = _snippets(context)
    made = {which: _made(context, attack, snippets, length, which, has_base) for which in _kinds(has_base)}
    rows = {which: _rows(context, corpus, ranked) for which, ranked in made.items()}
    collector.run.write_private(f"{attack.name}.json", encode(rows))
    figures = {which: _figures(context, judge, corpus, declared, rows[which]) for which in made}
    return attempted(
        attack,
        parameters={
            "texts": len(made["tuned"].texts), "tokens": length, "top_k": _TOP_K, "ranking": declared,
            "best": min(_BEST, len(made["tuned"].orders.get(declared, ()))), "run_tokens": corpus.least,
        },
        estimates=figures["tuned"],
        control=figures.get("base", {}),
        records=int(corpus.possible.sum()),
        coins=judge.coins(corpus.possible),
        notes=_notes(corpus, made, rows["tuned"], declared, bool(snippets)),
    )  # fmt: skip


def _kinds(has_base: bool) -> tuple[str, ...]:
    return ("tuned", "base") if has_base else ("tuned",)


def _room(context: Context) -> int:
    """How many tokens may follow the longest prompt, under both models; loads no weights."""
    subject = context.collector.subject
    if isinstance(subject, Trained):
        total = int(subject.card.model["context"])
    else:
        assert isinstance(subject, External)  # no other has weights here
        total = subject.context
        if subject.base is not None:
            from sordino.deployed import context_of

            total = min(total, context_of(subject.base) or total)
    return total - _SNIPPET - 1


def _snippets(context: Context) -> list[str]:
    """How records begin that the adversary knows not to be trained on; none of them is judged."""
    tokenizer, found = context.collector.serializer.tokenizer, []
    for example in context.nonmembers[: context.plan.generated.texts]:
        ids = context.collector.encode(example).ids
        # The attack puts the beginning token there itself. More tokens than it takes, as it encodes the text anew.
        start = int(tokenizer.bos_token_id is not None and ids[:1].tolist() == [tokenizer.bos_token_id])
        found.append(str(tokenizer.decode(ids[start : start + 2 * _SNIPPET].tolist())))
    return found


def _made(
    context: Context, attack: Attack, snippets: Sequence[str], length: int, which: str, has_base: bool
) -> Made:  # fmt: skip
    """The texts of a model, ranked, from private/ where they are there."""
    collector, plan = context.collector, context.plan.generated
    settings = digest(encode([plan.texts, length, _TOP_K, context.seed, snippets]))
    drawn = collector.key([], which, f"{attack.name}/1", settings)
    key = digest(drawn, *(part for name in _kinds(has_base) for part in collector.reader.identity(name)))
    path = f"{attack.name}/{key}/ranked.json"
    file = collector.run.private / path
    if not file.exists():

        def draw(_: Any, wanted: Sequence[Wanted]) -> list[Text]:
            return _drawn(context, wanted, which, f"{attack.name}/{drawn}")

        reader = collector.reader
        ranked: Ranked = attack(
            weights(reader, "tuned"), weights(reader, "base") if has_base else None, draw, snippets,
            count=plan.texts, length=length, top_k=_TOP_K, seed=context.seed,
        )  # fmt: skip
        collector.forwards += 1
        made = Made(
            ids=tuple(tuple(ids.tolist()) for ids in ranked.ids), texts=ranked.texts, strategies=ranked.strategies,
            orders={name: tuple(order.tolist()) for name, order in ranked.orders.items()}, dropped=ranked.dropped,
        )  # fmt: skip
        collector.run.write_private(path, encode(made))
    return msgspec.json.decode(file.read_bytes(), type=Made)


def _drawn(context: Context, wanted: Sequence[Wanted], which: str, folder: str) -> list[Text]:
    """What a model writes, a part at a time."""
    collector = context.collector
    name = f"{'model' if which == 'tuned' else 'untuned model'}, texts of its own"
    tick = collector.ticker(name, len(wanted))

    def work(start: int, stop: int) -> list[Text]:
        collector.forwards += 1
        return _written(weights(collector.reader, which), wanted[start:stop], context, tick)

    return in_parts(collector.run, folder, len(wanted), _PART, work, Text, tick=tick)


def _written(model: Any, wanted: Sequence[Wanted], context: Context, tick: Callable[[int], None]) -> list[Text]:
    from sordino.generate import Request, generate

    end = model.tokenizer.eos_token_id is not None
    requests = [
        Request(prefix=w.prefix, length=w.length, decoding=w.decodings, seed=w.seed, end=end) for w in wanted
    ]  # fmt: skip
    made = generate(model, requests, seed=context.seed, tick=tick)
    return [Text(ids=tuple(one.ids.tolist()), text=one.text) for one in made]


def _rows(context: Context, corpus: Corpus, made: Made) -> list[Row]:
    """Every text with its places and with what it repeats."""
    places: list[dict[str, int]] = [{} for _ in made.texts]
    for name, order in made.orders.items():
        for place, number in enumerate(order, 1):
            places[number][name] = place
    tokens = [np.array(ids, dtype=np.int32) for ids in made.ids]
    found = runs(tokens, corpus.trained, corpus.held, corpus.least)

    def decode(ids: np.ndarray) -> str:
        return str(context.collector.serializer.tokenizer.decode(ids.tolist()))

    return [
        Row(
            strategy=made.strategies[i], ids=made.ids[i], text=made.texts[i], places=places[i],
            memorised=bool(found.members[i]), others=bool(found.others[i]),
            longest=int(found.longest[i]), repeats=tuple(repeats(corpus, ids, decode)),
        )
        for i, ids in enumerate(tokens)
    ]  # fmt: skip


def _figures(
    context: Context, judge: Judge, corpus: Corpus, declared: str, rows: Sequence[Row]
) -> dict[str, Estimate]:  # fmt: skip
    """Shares of records by the declared ranking, and shares of texts by each."""
    orders = {name: _order(rows, name) for name in (declared, *(n for n in _rankings(rows) if n != declared))}
    out = {
        record
        for i in orders[declared][:_BEST].tolist()
        for run in rows[i].repeats
        if run.alone
        for record in run.records
    }
    hit = np.array([e.record.id in out for e in context.examples], dtype=bool)
    memorised, others = (np.array([getattr(r, name) for r in rows], dtype=bool) for name in ("memorised", "others"))
    found = judge.shares(hit, corpus.possible)
    for name, one in precisions(orders, memorised, _BEST).items():
        found[f"precision@{_BEST}.{name}"] = estimate(one)
    found[f"held-out@{_BEST}"] = estimate(precisions({declared: orders[declared]}, others, _BEST)[declared])
    return found


def _rankings(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.places))


def _order(rows: Sequence[Row], ranking: str) -> np.ndarray:
    """The numbers of the texts that a ranking kept, best first."""
    kept = [i for i, row in enumerate(rows) if ranking in row.places]
    return np.array(sorted(kept, key=lambda i: rows[i].places[ranking]), dtype=np.int64)


def _notes(
    corpus: Corpus, made: dict[str, Made], rows: Sequence[Row], declared: str, snippets: bool
) -> tuple[str, ...]:  # fmt: skip
    tuned = made["tuned"]
    ways = ", ".join(f"{tuned.strategies.count(name)} {name}" for name in dict.fromkeys(tuned.strategies)) or "none"
    kept = len(tuned.orders.get(declared, ()))
    longest = max((row.longest for row in rows), default=0)
    notes = [
        f"Texts by the way of asking: {ways}. {tuned.dropped} more had fewer than {SHORTEST} tokens. In the ranking "
        f"'{declared}', declared before, {kept} are distinct, and the first {min(_BEST, kept)} of them are judged.",
        f"A run of {corpus.least} tokens counts; the longest of a record trained on has {longest}. Of a record it must "
        "stand in no record of another coin. A text counts (precision) by a run of any record trained on that stands "
        f"in none held out; held-out@{_BEST} is the reverse. There are {len(corpus.trained):,} records trained on "
        f"and {len(corpus.held):,} held out.",
    ]
    if "base" in made:
        notes.append("The untuned model's texts are ranked as the model's own are: only who wrote them differs.")
    if not snippets:
        notes.append("No text was drawn after a snippet: no record is known that was not trained on.")
    return tuple(notes)
