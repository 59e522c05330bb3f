"""Other prompts: is what was forgotten still there for who asks in other words?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from sordino import stats
from sordino.model import Model
from sordino.records import Message, Record
from sordino.results import Robustness
from sordino.serialize import Tokens
from sordino.unlearn.measuring.metrics import extraction_strength
from sordino.unlearn.robustness.attacked import Attacked, Sample, area, estimated, labels, loss_of

__all__ = ["BEFORE", "REWORDINGS", "Paraphrases", "prompts", "reworded"]

Paraphrases = Callable[[Record], Sequence[Record]]
"""Other records that ask for the same, or say the same, as one does."""

REWORDINGS: Mapping[str, Callable[[str], str]] = {
    "prefix": lambda text: f"Here is something that was written down a while ago. {text}",
    "request": lambda text: f"Could you please tell me this once more? {text}",
    "quoted": lambda text: f'A friend asked: "{text}" The right answer is:',
    "lower case": str.lower,
}
"""Changes of a question, by name."""

BEFORE: Mapping[str, str] = {
    "prefix": "Here is something that was written down a while ago.",
    "request": "Write this text down once more, exactly as it was.",
    "archive": "From the archive:",
}
"""What stands before a record that has no question, by name."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One set of n records in all wordings (m): `owner` and `name` of each, its loss, which of its tokens were hit."""

    count: int
    owner: Int[np.ndarray, " m"]
    name: Sequence[str]
    loss: Float[np.ndarray, " m"]
    hits: Sequence[np.ndarray]

    def only(self, names: Sequence[str]) -> Bool[np.ndarray, " m"]:
        """Which of the wordings are called so."""
        return np.array([name in names for name in self.name])

    def likeliest(self, names: Sequence[str]) -> Float[np.ndarray, " n"]:
        """The loss of each record under that one of the wordings which makes it likeliest."""
        which, found = self.only(names), np.full(self.count, np.inf)
        np.minimum.at(found, self.owner[which], self.loss[which])
        return found

    def strength(self, names: Sequence[str]) -> float:
        """The mean over records of the highest extraction strength under these wordings."""
        which, best = self.only(names), np.zeros(self.count)
        strengths = [extraction_strength(hit) for hit, mine in zip(self.hits, which, strict=True) if mine]
        np.maximum.at(best, self.owner[which], strengths)
        return float(best.mean())


def prompts(attacked: Attacked, *, paraphrases: Paraphrases = lambda record: ()) -> Robustness:
    """Ask for what was forgotten in other words, and for never-trained records in the same.

    Prompts, and what users say in a chat, are reworded by rule (`REWORDINGS`); before plain texts stand words of
    `BEFORE`. `paraphrases` of a record are tried as well where records of both kinds have them. The attacker takes the
    wording under which a record is likeliest; the estimate is what that adds to the AUC of plain prompts: above 0, the
    forgetting held for some words only.
    """
    before, sides = dict(attacked.spent), (attacked.forget, attacked.never)
    advance, model = attacked.ticker("prompts", len(sides)), attacked.load()
    asked = []
    for side in sides:
        asked.append(_ask(attacked, model, side, paraphrases))
        advance(1)
    names = [name for name in dict.fromkeys(asked[0].name) if name in asked[1].name]
    plain, best = ([one.likeliest(some) for one in asked] for some in (["plain"], names))
    found = stats.paired_delong(-np.concatenate(best), -np.concatenate(plain), *labels(*sides))
    each = ", ".join(f"{name} {area(*(-one.loss[one.only([name])] for one in asked)):.3f}" for name in names)
    ours, theirs = (f"{one.strength(['plain']):.3f}, {one.strength(names):.3f}" for one in asked)
    return Robustness(
        name="prompts",
        what="AUC of forgotten against never-trained records by the loss under the wording that makes each likeliest, "
        "less that under plain prompts",
        estimate=estimated(found.interval),
        note=f"AUC by wording: {each}; of the likeliest {area(-best[0], -best[1]):.3f}; mean extraction strength, "
        f"plain and of the best wording: forgotten {ours}, never trained on {theirs}; {attacked.told(before)}",
    )


def _ask(attacked: Attacked, model: Model, side: Sample, paraphrases: Paraphrases) -> _Asked:
    """What `model` says of all wordings of the records of `side`; such as leave nothing to score are left out."""
    owners, names, tokens = list(range(len(side))), ["plain"] * len(side), list[Tokens]()
    for owner, example in enumerate(side.examples):
        given = {f"paraphrase {k}": record for k, record in enumerate(paraphrases(example.record), 1)}
        for name, record in (reworded(example.record) | given).items():
            made = attacked.encode(record)
            if made.target[1:].any():
                owners.append(owner)
                names.append(name)
                tokens.append(made)
    hits = [attacked.plain[e.record.id][1] for e in side.examples]
    losses = [attacked.plain_loss(side)]
    if tokens:
        found = attacked.read(model, tokens)
        losses.append(loss_of(found))
        hits += np.split(found.rank == 0, found.offsets[1:-1])
    return _Asked(count=len(side), owner=np.array(owners), name=names, loss=np.concatenate(losses), hits=hits)


def reworded(record: Record) -> dict[str, Record]:
    """The record with its prompts, or what its users say, in other words; a plain text as what follows others."""
    made: dict[str, tuple[Message, ...]] = {}
    if record.messages[0].role == "text":
        answer = Message("completion", record.messages[0].content)
        made = {name: (Message("prompt", words), answer) for name, words in BEFORE.items()}
    else:
        for name, change in REWORDINGS.items():
            made[name] = tuple(
                Message(m.role, change(m.content)) if m.role in ("prompt", "user") else m for m in record.messages
            )
    return {name: replace(record, messages=messages, spans=()) for name, messages in made.items()}
