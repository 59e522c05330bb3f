"""Private text as records: readers, stable ids, units, near-duplicate clusters, splits and coins."""

from sordino.records.dataset import read, suggest_columns
from sordino.records.placed import Example, Role
from sordino.records.record import (
    DataConfig,
    Dataset,
    Format,
    Message,
    Record,
    content_digest,
    record_id,
    unit_words,
)
from sordino.records.split import Split, SplitConfig, coin, split
from sordino.records.store import load, save

__all__ = [
    "DataConfig",
    "Dataset",
    "Example",
    "Format",
    "Message",
    "Record",
    "Role",
    "Split",
    "SplitConfig",
    "coin",
    "content_digest",
    "load",
    "read",
    "record_id",
    "save",
    "split",
    "suggest_columns",
    "unit_words",
]
