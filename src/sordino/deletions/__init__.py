"""Requests to delete: their ledger beside the runs, and what must not be trained on again."""

from sordino.deletions.book import FOLDER, Deletions, Standing
from sordino.deletions.chain import Chain, Entry
from sordino.deletions.leaving_out import leave_out, refuse_deleted
from sordino.deletions.tombstones import Marks, asked_of

__all__ = ["FOLDER", "Chain", "Deletions", "Entry", "Marks", "Standing", "asked_of", "leave_out", "refuse_deleted"]
