"""What a run was trained on, as the root of a Merkle tree over salted digests of its records.

A leaf is BLAKE2b-256, keyed with the salt, of a record's unit, id and content digest, each after its length. The
salt stays in the run's private folder, so leaves in a certificate tell nobody who is meant who does not have it;
a child run inherits it, so that a record has the same leaf before and after a deletion. Leaves are computed from the
stored records when they are needed: nothing but the salt is kept beside them.
"""

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sordino.errors import RunError
from sordino.evidence.merkle import Tree
from sordino.records import Example, content_digest
from sordino.records.columns import contents, labels, rejected
from sordino.records.placed import batches
from sordino.records.store import load
from sordino.results import encode
from sordino.run import Run

__all__ = ["FILE", "RULE", "Manifest", "content_digests", "keyed_digest", "manifest_of", "write_manifest"]

FILE = "manifest.json"
"""The private file that holds the salt."""

RULE = "blake2b-256, keyed, of unit, id and content digest, each after its length; sorted; Merkle"
"""How leaves and roots are computed, as the card of a run says it."""

_SCHEMA = 1
_SALT = 32


def keyed_digest(salt: bytes, *parts: str) -> bytes:
    """The 32 bytes of BLAKE2b-256, keyed with `salt`, of `parts`, each after its length as eight bytes."""
    state = hashlib.blake2b(key=salt, digest_size=32)
    for part in parts:
        # Lone surrogates are no Unicode, but a caller's own records may have them.
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.digest()


def content_digests(examples: Sequence[Example]) -> Iterator[tuple[str, str, str]]:
    """Unit, id and content digest (with label and rejected answer) of each of `examples`, without making them."""
    for batch in batches(examples):
        found = map(content_digest, contents(batch), labels(batch), rejected(batch))
        yield from zip(batch.column("unit").to_pylist(), batch.column("id").to_pylist(), found, strict=True)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The records that a run was trained on: the `salt` of their leaves, the leaves, and how many units they are of."""

    salt: bytes
    leaves: tuple[bytes, ...]
    units: int

    @classmethod
    def of(cls, salt: bytes, training: Sequence[Example]) -> "Manifest":
        """The manifest of the records in `training`, in whose order the leaves are."""
        units: set[str] = set()
        leaves = []
        for unit, name, content in content_digests(training):
            units.add(unit)
            leaves.append(keyed_digest(salt, unit, name, content))
        return cls(salt=salt, leaves=tuple(leaves), units=len(units))

    @cached_property
    def tree(self) -> Tree:
        """The tree over the leaves, which proves what is among them and what is not."""
        return Tree(self.leaves)

    @property
    def root(self) -> str:
        """The root of the tree, in hex."""
        return self.tree.root

    @property
    def described(self) -> dict[str, Any]:
        """What the card of a run says of it."""
        return {"root": self.root, "records": len(self.leaves), "units": self.units, "rule": RULE}

    def leaf(self, example: Example) -> bytes:
        """The leaf of an example, whether it was trained on or not: 32 bytes."""
        record = example.record
        content = content_digest(record.messages, record.label, record.rejected)
        return keyed_digest(self.salt, record.unit, record.id, content)

    def subject(self, name: str) -> str:
        """The salted hash of the name of a subject: 64 hex digits, which are no leaf."""
        return keyed_digest(self.salt, "subject", name).hex()


def write_manifest(run: Run) -> Manifest:
    """Put the root over the training records that `run` holds into its card; a salt is drawn where it has none."""
    path = run.private / FILE
    if not path.exists():
        run.write_private(FILE, encode({"schema": _SCHEMA, "salt": secrets.token_hex(_SALT)}))
    manifest = Manifest.of(_salt(run), load(run.records).training)
    card = run.card
    run.write_card(dataclasses.replace(card, data={**card.data, "manifest": manifest.described}))
    return manifest


def manifest_of(run: Run) -> Manifest:
    """The manifest of `run`, computed from its records; raises `RunError` where it is not what its card says."""
    told = run.card.data.get("manifest")
    if not isinstance(told, dict) or not (run.private / FILE).exists():
        message = f"{run.path} has no manifest: an older version of Sordino made it, or the file was removed."
        hint = "Train it again; or give it one of the records as they are now by `sordino.manifest.write_manifest`."
        raise RunError(message, hint)
    manifest = Manifest.of(_salt(run), load(run.records).training)
    if manifest.root != told.get("root"):
        purged = sum(notice.count for notice in run.card.notices if notice.kind == "purged")
        message = (
            f"Manifest digest mismatch in {run.path}: {len(manifest.leaves):,} training records have the root "
            f"{manifest.root[:16]}…, but its card says {str(told.get('root'))[:16]}… of {told.get('records')}."
        )
        hint = "Restore private/records.parquet and run.json as they were."
        if purged:
            hint = f"{purged:,} deleted records were purged from it: go on with the run that replaced it."
        raise RunError(message, hint)
    return manifest


def _salt(run: Run) -> bytes:
    path = run.private / FILE
    hint = "Restore it: without it, nothing shows what the run was trained on."
    try:
        found = json.loads(path.read_bytes())
        schema, salt = found["schema"], bytes.fromhex(found["salt"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: it holds no salt ({type(error).__name__}).", hint) from error
    if schema != _SCHEMA:
        raise RunError(f"{path} has schema {schema!r}; this Sordino reads schema {_SCHEMA}.", hint)
    if len(salt) != _SALT:
        raise RunError(f"{path} is damaged: its salt has {len(salt)} bytes, not {_SALT}.", hint)
    return salt
