"""What a model gives away about one person: every record of a unit, and the personal data in it, asked for by name.

An audit judges attacks on records drawn by coins; a request is about all that belongs to somebody, trained on
for certain or not. So the unit's own records are attacked here, whatever their role, and nothing is estimated.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sordino.attacks.base import Windows, offered
from sordino.attacks.extraction.prefix import prefix
from sordino.attacks.extraction.sampling import sampling
from sordino.attacks.mentions import Mention, mentions
from sordino.audit.collecting import Collector, Ticker
from sordino.audit.inputs import Context, lacking, provide
from sordino.audit.queried import expected, out
from sordino.audit.written import Written
from sordino.errors import AuditError
from sordino.evidence import digest
from sordino.pii import default_detectors, mask
from sordino.records import Example
from sordino.records.store import load as load_split
from sordino.results import AuditPlan, EntityRow, PersonReport, PersonRow, SamplingPlan, encode
from sordino.run import Run
from sordino.serialize import TARGETS, Serializer
from sordino.signals import Signals

__all__ = ["person"]


def person(
    run: Run, unit: str, *, ticker: Ticker = lambda name, total: lambda done: None
) -> tuple[PersonReport, list[dict[str, Any]]]:
    """The report about `unit`, without private text, and what it says in full, for the holder of the records alone.

    Raises `AuditError` where no record belongs to the unit, or the model's probabilities cannot be had.
    """
    with run.lock():
        collector = Collector(run, ticker)
        mine = [e for e in load_split(run.records).examples if e.record.unit == unit]
        if not mine:
            raise AuditError(*_unknown(run, unit))
        plan = collector.card.plan
        context = Context(collector=collector, examples=mine, known=[], plan=plan, seed=0)
        if isinstance(collector.subject, Written) or (missing := lacking(["drawn"], context)):
            what = "the model's weights" if isinstance(collector.subject, Written) else missing
            raise AuditError(f"What a model says of one unit takes {what}.", "Only text is told by this server.")
        pair = provide(["drawn"], context, collector.signals(mine, {}))
        return _report(collector, unit, mine, pair, plan)


def _unknown(run: Run, unit: str) -> tuple[str, str]:
    known = str(run.card.data["unit"])
    if known == "record":
        return f"No record is named {unit!r}.", "Each record is a unit of its own here: give a record's id (data.id)."
    where = "that data.unit_rows made" if known.startswith("rows-of-") else f"of the column {known} (data.unit)"
    return f"No record belongs to the unit {unit!r}.", f"Give one {where}; {run.private / 'records.parquet'} has all."


def _report(
    collector: Collector,
    unit: str,
    mine: Sequence[Example],
    pair: tuple[Signals, Signals | None],
    plan: AuditPlan,
) -> tuple[PersonReport, list[dict[str, Any]]]:
    tuned, base = pair
    judged, limit = _judged(collector.run), plan.sampling
    windows, before = (None if s is None else _windows(s, plan) for s in pair)
    odds, base_odds = (None if s is None else _odds(s, plan) for s in pair)
    assert windows is not None and odds is not None  # of the tuned model there are always signals
    rows, revealed = [], []
    repeats = dict(zip(windows.record.tolist(), _confirmed(collector, mine, windows), strict=True))
    for number, example in enumerate(mine):
        entities, values = _entities(collector.serializer, example, number, pair, limit)
        rows.append(
            PersonRow(
                record_id=example.record.id,
                role=example.role,
                included=example.included,
                p_value=judged.get(example.record.id),
                verbatim=repeats.get(number, False),
                base_verbatim=before is not None and number in set(before.record.tolist()),
                queries=expected(odds[number]),
                base_queries=None if base_odds is None else expected(base_odds[number]),
                out=bool(out(odds[number], limit.limit, limit.chance)),
                entities=entities,
            )
        )
        revealed.append({
            "record": example.record.id, "text": [m.content for m in example.record.messages], "entities": values,
        })  # fmt: skip
    report = PersonReport(
        run=collector.card.name,
        unit=unit,
        unit_kind=str(collector.card.data["unit"]),
        decoding=tuned.sampled.decodings[0],
        limit=limit.limit,
        chance=limit.chance,
        has_base=base is not None,
        records=tuple(rows),
    )
    collector.run.write_private(f"people/{digest(unit)}.json", encode(report))
    return report, revealed


def _windows(signals: Signals, plan: AuditPlan) -> Windows:
    found: Windows = prefix(
        offered(prefix, signals), prefix_tokens=plan.prefix_tokens, suffix_tokens=plan.suffix_tokens
    )
    return found


def _odds(signals: Signals, plan: AuditPlan) -> np.ndarray:
    """The ln of the probability that one query gives each record's likeliest passage, under the first decoding."""
    odds = sampling(offered(sampling, signals), prefix_tokens=plan.prefix_tokens, suffix_tokens=plan.suffix_tokens)
    first: np.ndarray = odds.logprob[:, 0]
    return first


def _confirmed(collector: Collector, mine: Sequence[Example], windows: Windows) -> list[bool]:
    if not len(windows.record):
        return []
    tokens = [collector.encode(mine[i]).ids for i in windows.record]
    spans = list(zip(tokens, windows.start, windows.stop, strict=True))
    return collector.repeats([ids[:a] for ids, a, _ in spans], [ids[a:b] for ids, a, b in spans])


def _judged(run: Run) -> dict[str, float]:
    """The p-value of each record that an audit has judged alone."""
    path = run.private / "scores.json"
    if not path.exists():
        return {}
    rows = json.loads(path.read_bytes())
    found = zip(rows["records"], rows.get("identified", {}).get("p_values", []), strict=False)
    return {name: float(p) for name, p in found if p is not None and np.isfinite(p)}


def _entities(
    serializer: Serializer, example: Example, number: int, pair: tuple[Signals, Signals | None], limit: SamplingPlan
) -> tuple[tuple[EntityRow, ...], list[dict[str, Any]]]:
    """The entities of a record as labelled or, where it has no labels, as they are found."""
    detectors = None if example.record.spans else default_detectors()
    rows, values = [], []
    for mention in mentions([example.record], detectors, repeated=True):
        place = _positions(serializer, mention)
        tuned, base = (None if s is None else _value(s, number, place) for s in pair)
        rows.append(
            EntityRow(
                kind=mention.kind,
                masked=mask(mention.value, mention.kind),
                trained=tuned is not None,
                queries=None if tuned is None else expected(tuned),
                base_queries=None if base is None else expected(base),
                out=tuned is not None and bool(out(tuned, limit.limit, limit.chance)),
            )
        )
        values.append({"kind": mention.kind, "value": mention.value})
    return tuple(rows), values


def _positions(serializer: Serializer, mention: Mention) -> tuple[int, int]:
    """The first and the last token of an entity and what is written in one with it; (0, 0) where it is not a target."""
    record = mention.record
    if not mention.scored:
        return 0, 0
    text, targets = serializer.render(record)
    place = sum(m.role in TARGETS for m in record.messages[: mention.span.message])
    start, stop = (targets[place][0] + edge for edge in (mention.span.start, mention.span.stop))
    ids, offsets = serializer.tokenize(text, template=serializer.templated(record))
    begin = serializer.leading(ids)
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start]
    return (begin + inside[0], begin + inside[-1] + 1) if inside else (0, 0)


def _value(signals: Signals, number: int, place: tuple[int, int]) -> float | None:
    """The ln of the probability that sampling writes the tokens at `place`; None where not all of them are scored."""
    s = signals.statistics
    rows = slice(int(s.offsets[number]), int(s.offsets[number + 1]))
    position = np.asarray(s.position[rows])
    chosen = (position >= place[0]) & (position < place[1])
    if place[0] == place[1] or int(chosen.sum()) != place[1] - place[0]:
        return None
    return min(0.0, float(np.asarray(signals.sampled.logprob[rows], dtype=np.float64)[chosen, 0].sum()))
