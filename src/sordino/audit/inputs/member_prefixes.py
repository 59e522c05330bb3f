"""How likely each record is after records that are known to have been trained on."""

from sordino.audit.inputs.context import Context, Pair

__all__ = ["give", "lacking"]


def lacking(context: Context) -> str:
    """A known member: one that is no candidate."""
    return "" if context.members else "a record known to be trained on (lower split.candidates)"


def give(context: Context, pair: Pair) -> Pair:
    """Mean ln p a token after the prefix and without it, (records, 2), under both models."""
    from sordino.audit.shots import provide

    return provide(context, pair, "member_prefixes", context.members, "known members")
