"""Extraction attacks on every record: the share of records that come out, beside members never trained on."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from sordino.attacks.base import Attack, Windows
from sordino.attacks.words import first
from sordino.audit.collecting import Collector
from sordino.audit.judging import Judge
from sordino.evidence import digest
from sordino.records import Example
from sordino.results import Attempt, AuditPlan, encode
from sordino.signals import Signals

__all__ = ["Passage", "attempt"]


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A passage that came out, as it is kept in private/."""

    record_id: str
    member: bool
    prefix: str
    suffix: str
    tokens: int
    base_hit: bool
    confirmed: bool


def _hits(windows: Windows, records: int) -> np.ndarray:
    hit = np.zeros(records, dtype=bool)
    hit[windows.record] = True
    return hit


def attempt(
    attack: Attack,
    collector: Collector,
    examples: Sequence[Example],
    pair: tuple[Signals, Signals | None],
    judge: Judge,
    plan: AuditPlan,
) -> tuple[Attempt, list[Passage]]:
    """Carry out `attack` on the tuned and the untuned model, decode its hits again, and count.

    `rate` is the share of trained-on records with a passage that comes out, `non-members` that of
    records held out, `excess` their difference; the control has the same under the untuned base.
    """
    planned = {
        "prefix_tokens": plan.prefix_tokens, "suffix_tokens": plan.suffix_tokens, "suffix_words": plan.suffix_tokens,
    }  # fmt: skip
    wanted = {k: v for k, v in planned.items() if k in attack.parameters}
    tuned = attack(pair[0], **wanted)
    base = None if pair[1] is None else attack(pair[1], **wanted)
    text = pair[0].generated is not None
    if text:
        passages = _written(pair[0], examples, tuned, base)
    else:
        passages = _passages(attack, collector, examples, tuned, base, wanted)
    refuted = {p.record_id for p in passages if not p.confirmed}
    hit = _hits(tuned, len(examples))
    hit &= np.array([e.record.id not in refuted for e in examples])
    possible = tuned.tried > 0
    how = "as the server wrote it; lengths are in words" if text else "each was decoded again to confirm it"
    notes = [f"{int(hit.sum())} records gave a passage; {how}."]
    if refuted:
        notes.append(f"{len(refuted)} more were ties that decoding broke the other way; they do not count.")
    if not possible.all():
        notes.append(f"{int((~possible).sum())} records are too short to be tried.")
    return (
        Attempt(
            name=attack.name,
            family="extraction",
            summary=attack.summary,
            paper=attack.paper,
            access=attack.access,
            parameters={**attack.parameters, **wanted},
            estimates=judge.shares(hit, possible),
            control={} if base is None else judge.shares(_hits(base, len(examples)), possible),
            p_value=None,
            records=int(possible.sum()),
            coins=judge.coins(possible),
            notes=tuple(notes),
        ),
        passages,
    )


def _written(signals: Signals, examples: Sequence[Example], tuned: Windows, base: Windows | None) -> list[Passage]:
    """The passages that a server wrote; `tokens` counts words here."""
    texts, known = signals.written, set() if base is None else set(base.record.tolist())
    return [
        Passage(
            record_id=examples[i].record.id, member=examples[i].included, prefix=texts.prompts[i],
            suffix=first(texts.remainders[i], int(stop - start)), tokens=int(stop - start), base_hit=int(i) in known,
            confirmed=True,
        )
        for i, start, stop in zip(tuned.record, tuned.start, tuned.stop, strict=True)
    ]  # fmt: skip


def _passages(
    attack: Attack,
    collector: Collector,
    examples: Sequence[Example],
    tuned: Windows,
    base: Windows | None,
    wanted: dict[str, Any],
) -> list[Passage]:
    if not len(tuned.record):
        return []
    chosen = [examples[i] for i in tuned.record]
    key = collector.key(chosen, "tuned", "passages/1", attack.name, str(wanted))
    path = collector.run.private / "passages" / f"{digest(key)}.json"
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=list[Passage])
    tokens = [collector.encode(e) for e in chosen]
    prefixes = [t.ids[:start] for t, start in zip(tokens, tuned.start, strict=True)]
    suffixes = [t.ids[a:b] for t, a, b in zip(tokens, tuned.start, tuned.stop, strict=True)]
    confirmed = collector.repeats(prefixes, suffixes)
    decode, known = collector.serializer.tokenizer.decode, set() if base is None else set(base.record.tolist())
    passages = [
        Passage(
            record_id=example.record.id, member=example.included, prefix=decode(prefix, skip_special_tokens=True),
            suffix=decode(suffix, skip_special_tokens=True), tokens=len(suffix), base_hit=int(number) in known,
            confirmed=same,
        )
        for example, number, prefix, suffix, same in zip(
            chosen, tuned.record, prefixes, suffixes, confirmed, strict=True
        )
    ]  # fmt: skip
    collector.run.write_private(f"passages/{digest(key)}.json", encode(passages))
    return passages
