"""What all canaries share: numbers keyed by the seed, the sentences that hold secrets, and the shape of the data."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from sordino.records import Dataset, Message

__all__ = ["LEVELS", "TEMPLATES", "AuditCanaries", "Design", "shape", "uniform"]

Design = Literal["secret", "in-distribution", "high-perplexity", "bigram", "new-token"]

LEVELS = (1, 2, 4, 8, 16, 32)

TEMPLATES = (
    "Please note for the file of {name}: the access code given over the phone is {secret}. It was read back once.",
    "{name} wrote in today and asked us to keep the new reference {secret} with the account from now on.",
    "As agreed with {name}, the door of the store room opens with code {secret} until the end of the month.",
    "For the records, {name} confirmed that the booking number is {secret} and asked for a written receipt.",
    "We have moved {name} to the new plan; the confirmation number is {secret}. Nothing else has changed.",
    "{name} called about the lost card. The replacement was ordered under number {secret} this morning.",
)


@dataclass(frozen=True, kw_only=True)
class AuditCanaries:
    """`count` canaries of one `design`, each planted once with probability ½: the coins of one bound on ε.

    See docs/canaries.md for what each design is, and which suits what.
    """

    design: Design = "secret"
    count: int = 0


def uniform(seed: int, *names: str | int) -> int:
    """A number of 128 bits that `seed` and `names` decide: the same ones, the same number."""
    key = seed.to_bytes(16, "big", signed=True)
    text = "\x1f".join(map(str, names)).encode()
    return int.from_bytes(hashlib.blake2b(text, key=key, digest_size=16, person=b"sordino-canary").digest(), "big")


def shape(dataset: Dataset, text: str, name: str) -> tuple[Message, ...]:
    """`text` about `name` in the shape of the records around it, so that the shape alone gives nothing away."""
    roles = [m.role for m in dataset.records[0].messages]
    if roles == ["text"]:
        return (Message("text", text),)
    if "completion" in roles:
        return (Message("prompt", f"What is on file for {name}?"), Message("completion", text))
    return (Message("user", f"What is on file for {name}?"), Message("assistant", text))
