"""The scores of all other attacks, for those that combine them; the audit gives them once they are there."""

from sordino.audit.inputs.context import Context, Pair

__all__ = ["give", "lacking"]


def lacking(context: Context) -> str:
    """Nothing: an audit makes other attacks always."""
    return ""


def give(context: Context, pair: Pair) -> Pair:
    """Nothing yet: see `sordino.audit.datasets`."""
    return pair
