"""Whose each record is, where somebody has several."""

from dataclasses import replace

from sordino.audit.inputs.context import Context, Pair

__all__ = ["give", "lacking"]


def lacking(context: Context) -> str:
    """Units of several records."""
    several = len({e.record.unit for e in context.examples}) < len(context.examples)
    return "" if several else "units of several records each (data.unit)"


def give(context: Context, pair: Pair) -> Pair:
    """The unit of each record."""
    names = tuple(e.record.unit for e in context.examples)
    first, second = (None if s is None else replace(s, units=names) for s in pair)
    assert first is not None
    return first, second
