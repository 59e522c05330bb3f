"""Requests resolved against a run, and what else beside it holds what they ask to delete."""

from sordino.unlearn.requests.resolving import LARGEST, lineage, names_from, new_request, resolve

__all__ = ["LARGEST", "lineage", "names_from", "new_request", "resolve"]
