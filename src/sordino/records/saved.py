"""Data sets of the `datasets` library: folders that `save_to_disk` wrote, and data sets on the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from sordino.errors import ConfigError, DataError, did_you_mean, first_line
from sordino.records.record import DataConfig
from sordino.records.tables import Lazy, Row, Table

__all__ = ["hub_name", "is_saved", "read_hub", "read_saved"]

PREFIXES = ("hub:", "hf://datasets/")
BATCH = 1024


def hub_name(path: str) -> str | None:
    """The id in "hub:owner/name" or "hf://datasets/owner/name"; None for any other path."""
    return next((path.removeprefix(prefix).rstrip("/") for prefix in PREFIXES if path.startswith(prefix)), None)


def is_saved(path: Path) -> bool:
    """Whether `path` is a folder that `save_to_disk` wrote."""
    whole = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    return whole or (path / "dataset_dict.json").is_file()


def read_saved(path: Path, source: str, config: DataConfig) -> Table:
    """The rows of a folder that `save_to_disk` wrote, mapped into memory; one split of it if it has several."""
    import pyarrow as pa
    from datasets import load_from_disk

    if config.subset or config.revision:
        name = "subset" if config.subset else "revision"
        raise ConfigError(f"data.{name} is set, but {source} is a folder.", "It is for data sets on the hub.")
    try:
        found = load_from_disk(path, keep_in_memory=False)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        message = f"{source} cannot be read as a saved data set: {first_line(error)}."
        raise DataError(message, "Is it damaged? Save it again with save_to_disk.") from error
    return _table(found, source, config.split)


def read_hub(name: str, config: DataConfig) -> Table:
    """The rows of a data set on the hub, from the local cache where it is there; no code of it is run.

    Offline (`HF_HUB_OFFLINE=1`), what is not in the cache raises `DataError`, like what does not exist.
    """
    from datasets import DownloadConfig, load_dataset
    from datasets.exceptions import DatasetsError

    source = config.path
    if name.count("/") != 1 and not Path(name).is_dir():
        raise DataError(f"{source} names no data set.", "Write hub:owner/name.")
    if not Path(name).is_dir():
        _check_reachable(name, config)
    try:
        with _quietly():
            found = load_dataset(
                name, config.subset, revision=config.revision, download_config=DownloadConfig(max_retries=0)
            )
    except (OSError, ValueError, DatasetsError) as error:
        message = f"{source} cannot be loaded from the hub: {first_line(error)}."
        hint = "Check the id, data.subset and data.revision, your access and the network."
        raise DataError(message, hint) from error
    return _table(found, source, config.split)


def _check_reachable(name: str, config: DataConfig) -> None:
    """Ask once: the loader itself asks six times, half a minute long, before it says that there is no network."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(name, revision=config.revision, timeout=10)
    except Exception as error:  # no network, no such data set, no access: the client has a type for each
        message = f"{config.path} cannot be found on the hub: {first_line(error)}."
        hint = "Check the id, your access and the network; HF_HUB_OFFLINE=1 takes what is in the cache."
        raise DataError(message, hint) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the loader's own progress bars."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _table(found: Any, source: str, split: str | None) -> Table:
    from datasets import DatasetDict

    if isinstance(found, DatasetDict):
        if split is None and len(found) > 1:
            hint = f"Set data.split to one of: {', '.join(found)}."
            raise DataError(f"{source} has {len(found)} splits.", hint)
        name = next(iter(found)) if split is None else split
        if name not in found:
            raise DataError(f"{source} has no split '{name}'.", did_you_mean(name, found))
        found = found[name]
    elif split is not None and split != str(found.split):
        raise DataError(f"{source} has no split '{split}': it is a single one.", "Leave data.split out.")

    def rows() -> Iterator[Row]:
        batches = (batch.to_pylist() for batch in found.with_format("arrow").iter(BATCH))
        for number, values in enumerate(chain.from_iterable(batches), 1):
            yield Row(f"row {number}", values)

    if not len(found):
        raise DataError(f"{source} holds no record.", "Check that it is the right data set.")
    return Table(columns=tuple(found.column_names), rows=Lazy(rows, len(found)))
