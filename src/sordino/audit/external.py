"""A model that was trained elsewhere, as a run folder to audit: the card, the records, and the subject."""

import dataclasses
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import sordino
from sordino.attacks.base import Task
from sordino.audit.placing import place
from sordino.audit.secrets import check_secrets
from sordino.audit.settings import ExternalConfig
from sordino.audit.subjects import Subject, continued, said
from sordino.audit.written import Written
from sordino.config import ModelConfig, recorded_as
from sordino.errors import ModelError, RunError
from sordino.evidence import digest
from sordino.records import Example, Split, read
from sordino.records.store import save as save_split
from sordino.results import Notice, RunCard, encode
from sordino.run import Run
from sordino.serialize import Serializer, Tokens, encode_all
from sordino.signals import STATISTICS, Statistics

__all__ = ["External", "create_external", "open_external"]

Tick = Callable[[int], None]
DEFAULT_LENGTH = 1024


def create_external(config: ExternalConfig) -> Run:
    """The run folder of an audit of a model trained elsewhere: made, or the one made before for the same.

    "The same" is the same settings, records and weights: what was computed then is found again. No
    weights are loaded. Raises `DataError`, `ModelError` or `ConfigError` for what cannot be audited.
    """
    members = read(config.data)
    nonmembers = read(dataclasses.replace(config.data, path=config.nonmembers))
    placed = place(members, nonmembers, config.near_duplicates, known=config.known, seed=config.seed)
    check_secrets(config.audit, placed.candidates)
    model, notices = _describe(config, [e for e in placed.examples if e.role != "excluded"])
    # Neither the plan nor more samples make another question: answers that are there are used.
    settings = msgspec.to_builtins(dataclasses.replace(config, out="", audit=type(config.audit)(), samples=1))
    identified = {name: value for name, value in model.items() if name != "requests"}
    key = digest(encode(settings), encode(identified), members.fingerprint, nonmembers.fingerprint)
    card = RunCard(
        name="",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="external",
        config=msgspec.to_builtins(config),
        seed=config.seed,
        data={
            "members": config.data.path,
            "non-members": config.nonmembers,
            "fingerprint": digest(members.fingerprint, nonmembers.fingerprint),
            "unit": members.unit_kind,
            "counts": _counts(placed),
        },
        model={**model, "key": key},
        environment={"sordino": sordino.__version__, "python": platform.python_version()},
        notices=(*placed.notices, *notices),
        plan=config.audit,
    )
    run = _same(Path(config.out), config.name, key) or Run.create(Path(config.out), config.name, key)
    # The placement is a function of what the key holds; it is written anew in case it was interrupted.
    save_split(placed, run.records)
    run.write_card(dataclasses.replace(card, name=run.path.name))
    return run


def _same(root: Path, name: str, key: str) -> Run | None:
    for path in sorted(root.glob(f"*-{name}-{key[:4]}*/run.json")):
        run = Run(path.parent)
        try:
            if run.card.status == "external" and run.card.model.get("key") == key:
                return run
        except RunError:
            continue  # damaged, or of another version: left alone
    return None


def _counts(placed: Split) -> dict[str, int]:
    return {
        "records": len(placed.examples),
        "units": len({e.record.unit for e in placed.examples}),
        "members": len(placed.members),
        "non-members": len(placed.nonmembers),
        "excluded": sum(e.role == "excluded" for e in placed.examples),
        "known": sum(e.role in ("train", "validation") for e in placed.examples),
    }


def _describe(config: ExternalConfig, examples: Sequence[Example]) -> tuple[dict[str, Any], list[Notice]]:
    """What the card says of the model, and what became of the records as tokens."""
    if config.endpoint is not None:
        from sordino.audit.endpoint import describe

        return describe(config, examples)
    from sordino.deployed import context_of, identity
    from sordino.model import load_tokenizer, tokenizer_digest_of

    folder, adapter, base = _folders(config)
    tokenizer = load_tokenizer(ModelConfig(path=str(folder), remote_code=config.model.remote_code))
    serializer = serializer_of(config, tokenizer, context_of(folder))
    _, notices = encode_all([e.record for e in examples], serializer)
    if base is not None:
        check_base_tokens(config, base, serializer, examples)
    untuned = folder if adapter is not None else base
    return {
        "path": config.model.path,
        "adapter": config.adapter or "none",
        "base path": config.base or ("the model under the adapter" if adapter else "none"),
        "weights": identity(folder, adapter, config.dtype, config.quantize),
        "base": identity(untuned, None, config.dtype, None) if untuned else "none",
        "tokenizer": tokenizer_digest_of(tokenizer),
        "serializer": serializer.rule,
        "max_length": serializer.max_length,
        "dtype": config.dtype,
        "quantize": config.quantize or "none",
    }, notices


def _folders(config: ExternalConfig) -> tuple[Path, Path | None, Path | None]:
    """The folders of the model, its adapter and its base."""
    from sordino.deployed import fetch

    base = None if config.base is None else fetch(dataclasses.replace(config.model, path=config.base, revision=None))
    adapter = None
    if config.adapter is not None:
        adapter = Path(config.adapter)
        if not (adapter / "adapter_config.json").is_file():
            message = f"{config.adapter} is not a folder with a PEFT adapter: it has no adapter_config.json."
            raise ModelError(message, "Give the folder that save_pretrained wrote.")
        from sordino.evidence import require_safetensors

        require_safetensors(adapter)
    return fetch(config.model), adapter, base


def serializer_of(config: ExternalConfig, tokenizer: Any, context: int | None) -> Serializer:
    """The serializer of an audit: at most `max_length` tokens, by default the context up to 1,024."""
    length = config.max_length or min(context or DEFAULT_LENGTH, DEFAULT_LENGTH)
    if context is not None and length > context:
        raise ModelError(f"max_length is {length}, but the model's context is {context} tokens.", "Set it lower.")
    return Serializer(tokenizer, length, config.too_long)


def check_base_tokens(config: ExternalConfig, base: Path, serializer: Serializer, examples: Sequence[Example]) -> None:
    """Raise `ModelError` where the base model reads the records as other tokens: nothing could be compared."""
    from sordino.model import load_tokenizer

    other = load_tokenizer(ModelConfig(path=str(base), remote_code=config.model.remote_code))
    theirs = Serializer(other, serializer.max_length, serializer.too_long)
    different = sum(
        not np.array_equal(serializer.encode(e.record).ids, theirs.encode(e.record).ids) for e in examples
    )  # fmt: skip
    if different:
        message = (
            f"--base {config.base} reads {different:,} of {len(examples):,} records as other tokens than the model."
        )
        raise ModelError(message, "Give the model that it was tuned from, or leave out --base.")


def open_external(run: Run) -> "Subject | Written":
    """The subject of an audit of a model trained elsewhere: weights here, or a server."""
    config = recorded_as(ExternalConfig, run.card.config, str(run.path / "run.json"))
    if config.endpoint is not None:
        from sordino.audit.endpoint import open_endpoint

        return open_endpoint(run, config)
    return External(run, config)


class External:
    """Weights in a folder that Sordino did not write, with an untuned base or without."""

    trained_here = False
    task: Task = "causal-lm"
    gives = frozenset(STATISTICS)

    def __init__(self, run: Run, config: ExternalConfig) -> None:
        """Find the folders; raises `RunError` where the weights have changed since the first audit."""
        from sordino.deployed import identity

        self.config, self.card = config, run.card
        self.folder, self.adapter, self.base = _folders(config)
        self.has_base = self.adapter is not None or self.base is not None
        untuned = self.folder if self.adapter is not None else self.base
        found = {"weights": identity(self.folder, self.adapter, config.dtype, config.quantize)}
        if untuned is not None:
            found["base"] = identity(untuned, None, config.dtype, None)
        for name, value in found.items():
            if value != self.card.model[name]:
                message = f"The {'model' if name == 'weights' else 'base model'} of {run.path} has changed since."
                raise RunError(message, "Audit it anew: `sordino audit --model …` makes another folder.")

    @cached_property
    def context(self) -> int:
        """How many tokens the model reads at once, less the virtual ones of its adapter; loads no weights."""
        from sordino.deployed import context_of, virtual_tokens_of

        taken = 0 if self.adapter is None else virtual_tokens_of(self.adapter)
        return (context_of(self.folder) or DEFAULT_LENGTH) - taken

    def load_serializer(self) -> Serializer:
        """The serializer of the first audit; raises `RunError` where the tokenizer has changed since."""
        from sordino.deployed import context_of
        from sordino.model import load_tokenizer

        tokenizer = load_tokenizer(ModelConfig(path=str(self.folder), remote_code=self.config.model.remote_code))
        serializer = serializer_of(self.config, tokenizer, context_of(self.folder))
        if serializer.rule != self.card.model["serializer"]:
            message = f"The tokenizer in {self.folder} is not the one of the first audit."
            raise RunError(message, "Restore it, or audit anew with `sordino audit --model …`.")
        return serializer

    @cached_property
    def tuned(self) -> Any:
        """The model under audit, as it is deployed."""
        from sordino.deployed import load_deployed

        asked = self.config
        return load_deployed(
            asked.model, self.folder, adapter=self.adapter, dtype=asked.dtype, quantize=asked.quantize
        )  # fmt: skip

    @cached_property
    def untuned(self) -> Any:
        """The model under the adapter, or --base, in the same type of numbers but never in eight bits."""
        from sordino.deployed import load_deployed

        if self.adapter is not None:
            return self.tuned.base()
        assert self.base is not None  # asked for only where there is one
        return load_deployed(self.config.model, self.base, dtype=self.config.dtype)

    def identity(self, which: str) -> tuple[str, ...]:
        """Digests of the weights in use and of the serializer."""
        model = self.card.model
        return str(model["weights"] if which == "tuned" else model["base"]), str(model["serializer"])

    def manifest(self) -> dict[str, str]:
        """The digests, with the numbers they were computed in."""
        names = ("weights", "base", "serializer", "dtype", "quantize")
        return {name: str(self.card.model[name]) for name in names}

    def measure(self, tokens: Sequence[Tokens], which: str, tick: Tick) -> Statistics:
        """One forward pass over `tokens`."""
        from sordino.collect import collect

        return collect(self.tuned if which == "tuned" else self.untuned, tokens, tick=tick)

    def repeats(self, prefixes: Sequence[np.ndarray], suffixes: Sequence[np.ndarray]) -> list[bool]:
        """By greedy decoding."""
        return said(self.tuned, prefixes, suffixes)

    def continues(self, prefixes: Sequence[np.ndarray], lengths: Sequence[int], which: str) -> list[str]:
        """By greedy decoding."""
        return continued(self.tuned if which == "tuned" else self.untuned, prefixes, lengths)
