"""Extraction attacks on every record: the share of records that come out, beside members never trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from sordino.attacks.base import Attack, Windows
from sordino.attacks.words import first
from sordino.audit.collecting import Collector
from sordino.audit.continuations import text_after
from sordino.audit.judging import Judge, attempted
from sordino.audit.parts import in_parts
from sordino.evidence import digest
from sordino.records import Example
from sordino.results import Attempt, AuditPlan
from sordino.signals import Signals

__all__ = ["Passage", "attempt"]

# Windows that are decoded between two results on disk.
_PART = 512


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A passage that came out, as it is kept in private/; `written` is what came, where that is not the very suffix."""

    record_id: str
    member: bool
    prefix: str
    suffix: str
    tokens: int
    base_hit: bool
    confirmed: bool
    written: str = ""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Which records (bool) came out of the tuned and, where there is one, the untuned model; `ties` did not."""

    hit: np.ndarray
    control: np.ndarray | None
    passages: list[Passage]
    how: str
    ties: int = 0


def _hits(records: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    hit = np.zeros(count, dtype=bool)
    hit[np.asarray(records, dtype=np.int64)] = True
    return hit


def attempt(
    attack: Attack,
    collector: Collector,
    examples: Sequence[Example],
    pair: tuple[Signals, Signals | None],
    judge: Judge,
    plan: AuditPlan,
) -> tuple[Attempt, list[Passage]]:
    """Carry out `attack` on the tuned and the untuned model, decode what it found, and count.

    `rate` is the share of trained-on records with a passage that comes out, `non-members` that of
    records held out, `excess` their difference; the control has the same under the untuned base.
    """
    planned = {
        "prefix_tokens": plan.prefix_tokens, "suffix_tokens": plan.suffix_tokens, "suffix_words": plan.suffix_tokens,
    }  # fmt: skip
    wanted = {k: v for k, v in planned.items() if k in attack.parameters}
    tuned = attack(pair[0], **wanted)
    base = None if pair[1] is None else attack(pair[1], **wanted)
    if pair[0].generated is not None:
        found = _of_text(pair[0], examples, tuned, base)
    elif tuned.accept is not None:
        found = _nearly(collector, examples, tuned, base)
    else:
        found = _verbatim(attack, collector, examples, (tuned, base), wanted)
    possible = tuned.tried > 0
    return (
        attempted(
            attack,
            parameters={**attack.parameters, **wanted},
            estimates=judge.shares(found.hit, possible),
            control={} if found.control is None else judge.shares(found.control, possible),
            records=int(possible.sum()),
            coins=judge.coins(possible),
            notes=_notes(found, tuned, possible),
        ),
        found.passages,
    )


def _notes(found: _Found, tuned: Windows, possible: np.ndarray) -> tuple[str, ...]:
    notes = [f"{int(found.hit.sum())} records gave a passage; {found.how}."]
    if found.ties:
        notes.append(f"{found.ties} more were ties that decoding broke the other way; they do not count.")
    if tuned.shortened:
        notes.append(f"In {tuned.shortened} records, too short for the lengths asked for, both shrank in proportion.")
    if not possible.all():
        notes.append(f"{int((~possible).sum())} records are too short to be tried.")
    return tuple(notes)


def _of_text(signals: Signals, examples: Sequence[Example], tuned: Windows, base: Windows | None) -> _Found:
    """What a server wrote; `tokens` counts words here."""
    texts, known = signals.written, set() if base is None else set(base.record.tolist())
    passages = [
        Passage(
            record_id=examples[i].record.id, member=examples[i].included, prefix=texts.prompts[i],
            suffix=first(texts.remainders[i], int(stop - start)), tokens=int(stop - start), base_hit=int(i) in known,
            confirmed=True,
        )
        for i, start, stop in zip(tuned.record, tuned.start, tuned.stop, strict=True)
    ]  # fmt: skip
    return _Found(
        hit=_hits(tuned.record, len(examples)),
        control=None if base is None else _hits(base.record, len(examples)),
        passages=passages,
        how="as the server wrote it; lengths are in words",
    )


def _cut(collector: Collector, examples: Sequence[Example], windows: Windows) -> tuple[list[np.ndarray], ...]:
    """The tokens before each window and those in it."""
    tokens = [collector.encode(examples[i]) for i in windows.record]
    prefixes = [t.ids[:start] for t, start in zip(tokens, windows.start, strict=True)]
    return prefixes, [t.ids[a:b] for t, a, b in zip(tokens, windows.start, windows.stop, strict=True)]


def _verbatim(
    attack: Attack,
    collector: Collector,
    examples: Sequence[Example],
    windows: tuple[Windows, Windows | None],
    wanted: dict[str, Any],
) -> _Found:
    """The windows that came out of the signals, decoded once more by the tuned model."""
    tuned, base = windows
    known = set() if base is None else set(base.record.tolist())
    passages = _confirmed(attack, collector, examples, tuned, known, wanted)
    refuted = {p.record_id for p in passages if not p.confirmed}
    return _Found(
        hit=_hits(tuned.record, len(examples)) & np.array([e.record.id not in refuted for e in examples]),
        control=None if base is None else _hits(base.record, len(examples)),
        passages=passages,
        how="each was decoded again to confirm it",
        ties=len(refuted),
    )


def _confirmed(
    attack: Attack,
    collector: Collector,
    examples: Sequence[Example],
    tuned: Windows,
    known: set[int],
    wanted: dict[str, Any],
) -> list[Passage]:
    if not len(tuned.record):
        return []
    chosen = [examples[i] for i in tuned.record]
    key = collector.key(chosen, "tuned", "passages/2", attack.name, str(wanted))
    prefixes, suffixes = _cut(collector, examples, tuned)
    path, decode = f"passages/{digest(key)}", collector.serializer.tokenizer.decode
    repeated = in_parts(
        collector.run, path, len(chosen), _PART, lambda a, b: collector.repeats(prefixes[a:b], suffixes[a:b]), bool
    )
    return [
        Passage(
            record_id=example.record.id, member=example.included, prefix=decode(prefix, skip_special_tokens=True),
            suffix=decode(suffix, skip_special_tokens=True), tokens=len(suffix), base_hit=int(number) in known,
            confirmed=same,
        )
        for example, number, prefix, suffix, same in zip(
            chosen, tuned.record, prefixes, suffixes, repeated, strict=True
        )
    ]  # fmt: skip


def _nearly(collector: Collector, examples: Sequence[Example], tuned: Windows, base: Windows | None) -> _Found:
    """The windows whose decoded text is accepted: of the tuned model in its windows, of the base in its own."""
    passages = {i: passage for i, passage in _accepted(collector, examples, tuned, "tuned") if passage is not None}
    known = [] if base is None else [i for i, p in _accepted(collector, examples, base, "base") if p is not None]
    base_hit = set(known)
    return _Found(
        hit=_hits(list(passages), len(examples)),
        control=None if base is None else _hits(known, len(examples)),
        passages=[msgspec.structs.replace(p, base_hit=i in base_hit) for i, p in passages.items()],
        how=f"{len(tuned.record)} of {int((tuned.tried > 0).sum())} were decoded, one window a record",
    )


def _accepted(
    collector: Collector, examples: Sequence[Example], windows: Windows, which: str
) -> list[tuple[int, Passage | None]]:
    """The record of each window, with the passage where what `which` model writes there is accepted."""
    assert windows.accept is not None  # without it, windows are hits already
    if not len(windows.record):
        return []
    chosen = [examples[i] for i in windows.record]
    prefixes, suffixes = _cut(collector, examples, windows)
    spans = list(zip(windows.start.tolist(), windows.stop.tolist(), strict=True))
    path = f"passages/{digest(collector.key(chosen, which, 'continued/2', str(spans)))}"
    lengths = [len(suffix) for suffix in suffixes]
    written = in_parts(
        collector.run, path, len(chosen), _PART,
        lambda a, b: collector.continues(prefixes[a:b], lengths[a:b], which), str,
    )  # fmt: skip
    tokenizer = collector.serializer.tokenizer
    true = [text_after(tokenizer, *pair) for pair in zip(prefixes, suffixes, strict=True)]
    return [
        (
            int(number),
            Passage(
                record_id=example.record.id, member=example.included,
                prefix=tokenizer.decode(prefix, skip_special_tokens=True), suffix=suffix, tokens=stop - start,
                base_hit=False, confirmed=True, written=text,
            ) if good else None,
        )
        for number, example, prefix, suffix, (start, stop), text, good in zip(
            windows.record, chosen, prefixes, true, spans, written, windows.accept(written, true), strict=True
        )
    ]  # fmt: skip
