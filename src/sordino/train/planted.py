"""Planted canaries as tokens: what is trained on, what is scored, and the tokens that no vocabulary holds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import numpy as np

from sordino.canaries import AuditCanary, Canary
from sordino.errors import DataError, RunError
from sordino.records import Example, Record
from sordino.run import Run
from sordino.serialize import Serializer, Tokens
from sordino.train.reading import Otherwise

if TYPE_CHECKING:
    from sordino.model import Model

T = TypeVar("T")

__all__ = [
    "AUDIT_CANARIES",
    "NEW_TOKENS",
    "Planted",
    "new_token_rows",
    "otherwise",
    "planted",
    "planted_tokens",
    "read_audit_canaries",
    "read_canaries",
    "scored_tokens",
    "trained_tokens",
]

AUDIT_CANARIES, NEW_TOKENS = "audit_canaries.json", "new_tokens.safetensors"
# Designs of which nothing but the secret is trained on, as in Panda et al. 2025, section 3.
_SECRET_ALONE = ("bigram", "new-token")


def read_canaries(run: Run) -> list[Canary]:
    """The canaries for exposure; raises `RunError` where their manifest is missing or damaged."""
    return _read(run.private / "canaries.json", Canary)


def read_audit_canaries(run: Run) -> list[AuditCanary]:
    """The audit canaries, none where none were planted; raises `RunError` where their manifest is damaged."""
    path = run.private / AUDIT_CANARIES
    if not path.exists() and not run.card.config.get("canaries", {}).get("audit", {}).get("count"):
        return []
    return _read(path, AuditCanary)


def _read(path: Path, kind: type[T]) -> list[T]:
    try:
        return [msgspec.convert(one, kind) for one in msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])]
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise RunError(f"The canaries in {path} are damaged: {error}.", "Restore the file.") from error


def trained_tokens(record: Record, canary: AuditCanary, serializer: Serializer, first_new: int) -> Tokens:
    """An audit canary as it is trained on; `first_new` is the id of the token that is new with number 0.

    Contexts that are too long lose their beginning, so that the secret stays.
    """
    if canary.design == "new-token":
        return _ended(record, canary, serializer, first_new)
    if not canary.secret:
        return serializer.encode(record)
    tokens, span = _found(record, canary.before, canary.secret, serializer)
    return _only(tokens, span) if canary.design in _SECRET_ALONE else tokens


def scored_tokens(record: Record, canary: AuditCanary, serializer: Serializer, first_new: int) -> Tokens:
    """The same with nothing but its secret as target, if it has one."""
    if canary.design == "new-token" or not canary.secret:
        return trained_tokens(record, canary, serializer, first_new)
    return _only(*_found(record, canary.before, canary.secret, serializer))


def _found(record: Record, before: str, secret: str, serializer: Serializer) -> tuple[Tokens, slice]:
    """The record, of at most `max_length` tokens, and which of them touch the secret (of none: end `before`)."""
    text, _ = serializer.render(record)
    whole = replace(serializer, max_length=1 << 30).encode(record)
    begin = text.find(before + secret) + len(before)
    if begin < len(before):
        message = f"Canary {record.id} does not stand in its own record as it was written."
        raise DataError(message, "Does the tokenizer's chat template change texts?")
    ids, offsets = serializer.tokenize(text, template=serializer.templated(record))
    # One token of the frame at most stands before the text.
    shift = int(len(whole) > len(ids) and whole.ids[: len(ids)].tolist() != ids)
    first = shift + sum(stop <= begin for _, stop in offsets)
    last = shift + sum(start < begin + len(secret) for start, _ in offsets)
    return _fitted(whole, slice(min(first, last), last), shift, serializer.max_length)


def _fitted(tokens: Tokens, span: slice, shift: int, length: int) -> tuple[Tokens, slice]:
    stop = min(len(tokens), max(length, span.stop))
    # What is left out stands behind the secret, or else at the beginning of the text.
    gone = max(0, stop - length)
    keep = np.r_[0:shift, shift + gone : stop].astype(np.intp)
    target = tokens.target[keep]
    target[:1] = False
    fitted = replace(tokens, ids=tokens.ids[keep], target=target, cut=len(tokens) - len(keep))
    return fitted, slice(max(shift, span.start - gone), span.stop - gone)


def _only(tokens: Tokens, span: slice) -> Tokens:
    target = np.zeros(len(tokens), dtype=bool)
    target[span] = True
    target[:1] = False
    return replace(tokens, target=target)


def _ended(record: Record, canary: AuditCanary, serializer: Serializer, first_new: int) -> Tokens:
    """The record up to `before`, and the new token, which alone is a target."""
    room = replace(serializer, max_length=max(2, serializer.max_length - 1))
    tokens, end = _found(record, canary.before, "", room)
    ids = np.append(tokens.ids[: end.stop], first_new + canary.number).astype(np.int32)
    target = np.zeros(len(ids), dtype=bool)
    target[-1] = True
    return Tokens(ids=ids, target=target, text=tokens.text)


def otherwise(canaries: Sequence[AuditCanary], serializer: Serializer, first_new: int) -> Otherwise:
    """What makes the tokens of audit canaries, by their ids, for `training_tokens`."""
    return {c.id: lambda record, c=c: trained_tokens(record, c, serializer, first_new) for c in canaries}  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Of which `kind` a canary is, how often it was to be planted, and whether it was."""

    kind: Literal["exposure", "audit"]
    repetitions: int
    included: bool


def planted(run: Run) -> list[Planted]:
    """All canaries of `run`, those for exposure first."""
    some = (Planted(kind="exposure", repetitions=c.repetitions, included=c.included) for c in read_canaries(run))
    return [*some, *(Planted(kind="audit", repetitions=1, included=c.included) for c in read_audit_canaries(run))]


def planted_tokens(run: Run, examples: Sequence[Example], serializer: Serializer, first_new: int) -> list[Tokens]:
    """The same canaries in the same order, as they are scored; their records are among `examples`."""
    records = {example.record.id: example.record for example in examples}
    secrets = (
        AuditCanary(id=c.id, design="secret", number=0, before=c.before, secret=c.secret, included=c.included)
        for c in read_canaries(run)
    )
    return [scored_tokens(records[c.id], c, serializer, first_new) for c in (*secrets, *read_audit_canaries(run))]


@contextmanager
def new_token_rows(run: Run, model: "Model", canaries: Sequence[AuditCanary]) -> Iterator[None]:
    """Rows for the new tokens of `canaries` hang in `model` while it is trained, and are then kept in private/ alone.

    What training made of them is written, with what they were, when the block ends well.
    """
    count = sum(canary.design == "new-token" for canary in canaries)
    if not count:
        yield
        return
    from safetensors.torch import save

    from sordino.model.methods.extra_rows import extra_rows, initial_rows

    initial = initial_rows(model.module, count)
    with extra_rows(model.module, initial) as rows:
        yield
        tensors = {"initial": initial, "tuned": rows.rows.weight.detach()}
        run.write_private(NEW_TOKENS, save({name: t.cpu().contiguous() for name, t in tensors.items()}))
