"""The attacker who holds the model before and after: does the difference tell who asked to be deleted?"""

from sordino.results import Robustness
from sordino.unlearn.robustness.attacked import Attacked, auc_of, estimated

__all__ = ["two_checkpoints"]


def two_checkpoints(attacked: Attacked) -> Robustness:
    """Rank records by how much their loss rose: those that were forgotten against those never trained on.

    This is a risk of being deleted, and no failure of forgetting: a perfect retraining has it as well (attacks on
    deletion by comparing models: Chen et al. 2021, arXiv:2005.02205). The note has the same of records that stay.
    """
    before, samples = dict(attacked.spent), (attacked.forget, attacked.never, attacked.retain)
    advance = attacked.ticker("two checkpoints", 2)
    first = attacked.losses(attacked.load(attacked.deletion.run), *samples)
    advance(1)
    second = [attacked.plain_loss(sample) for sample in samples[:2]]
    second += attacked.losses(attacked.load(), attacked.retain)
    advance(1)
    forget, never, retain = (after - old for old, after in zip(first, second, strict=True))
    stays = estimated(auc_of(retain, never, attacked.retain, attacked.never))
    return Robustness(
        name="two_checkpoints",
        what="AUC of forgotten against never-trained records, by how much the loss of each rose from the model before "
        "to the model after; 0.5 is an attacker who cannot tell who was deleted",
        estimate=estimated(auc_of(forget, never, attacked.forget, attacked.never)),
        note=f"records that stay, by the same score: {stays}; mean rise in nats a token: forgotten {forget.mean():.3f}"
        f", never trained on {never.mean():.3f}, that stay {retain.mean():.3f}; {attacked.told(before)}",
    )
