"""What the end-to-end tests share: a small model in a folder, made-up records, and ways to run the command line."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cli_worker
import pytest
from cli_worker import ENVIRONMENT


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A folder with a random 2-layer Llama and the bundled tokenizer."""
    import torch
    import transformers

    from sordino.config import ModelConfig
    from sordino.model import load_tokenizer

    folder = tmp_path_factory.mktemp("small-model")
    tokenizer = load_tokenizer(ModelConfig())
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tickets(tmp_path_factory) -> Path:
    """A CSV file with the tickets of 150 made-up customers."""
    from sordino.bundled.corpus import private_corpus

    path = tmp_path_factory.mktemp("data") / "tickets.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["customer", "text"])
        writer.writerows((t.customer_id, t.text) for t in private_corpus(5, 150))
    return path


@pytest.fixture(scope="session")
def sordino() -> Callable[..., Ended]:
    """`sordino(*words, cwd=...)` runs the real executable and waits for its end."""

    def run(*words: str | Path, cwd: Path, **variables: str) -> Ended:
        command = [sys.executable, "-m", "sordino.cli", *map(str, words)]
        environment = {**os.environ, **ENVIRONMENT, **variables}
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def forked() -> Iterator[Callable[..., Ended]]:
    """`forked(*words, cwd=..., death=...)` does the same in a forked process, which may kill itself."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        context = cli_worker.preload()

        def run(*words: str | Path, cwd: Path, death: cli_worker.Death | None = None) -> Ended:
            arguments: Any = ([str(w) for w in words], cwd, death)
            process = context.Process(target=cli_worker.run_cli, args=arguments)
            process.start()
            process.join(300)
            assert process.exitcode is not None, "the command did not end"
            return Ended(process.exitcode, (cwd / "stdout").read_text(), (cwd / "stderr").read_text())

        yield run
