"""How likely each record is after records that are known not to have been trained on."""

from sordino.audit.inputs.context import Context, Pair

__all__ = ["give", "lacking"]


def lacking(context: Context) -> str:
    """A known non-member: validation records are the ones a run of our own has."""
    return "" if context.nonmembers else "a record known not to be trained on (raise split.validation)"


def give(context: Context, pair: Pair) -> Pair:
    """Mean ln p a token after the prefix and without it, (records, 2), under both models."""
    from sordino.audit.shots import provide

    return provide(context, pair, "prefixes", context.nonmembers, "known non-members")
