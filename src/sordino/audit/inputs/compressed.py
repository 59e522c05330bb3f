"""The bytes of each text when compressed: no model has a part in them, so they are computed once."""

import zlib

from sordino.attacks.complexity import compressed_sizes
from sordino.audit.inputs import measured
from sordino.audit.inputs.context import Context, Pair
from sordino.evidence import digest

__all__ = ["give", "lacking"]

_DEFINITION = "compressed/1"


def lacking(context: Context) -> str:
    """Nothing: every record has a text."""
    return ""


def give(context: Context, pair: Pair) -> Pair:
    """The compressed size of each record's text, the same for the tuned and the untuned model."""
    store, texts = context.collector.store, pair[0].texts
    # Another zlib may make other sizes.
    key = digest(_DEFINITION, zlib.ZLIB_RUNTIME_VERSION, *texts)
    found = store.arrays(key)
    if found is None:
        found = {"sizes": compressed_sizes(texts)}
        store.put_arrays(key, found, {"definition": _DEFINITION, "records": len(texts)})
    return measured(pair, "compressed", found["sizes"], found["sizes"])
