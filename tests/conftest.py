"""What all tests share: annotations checked at run time, no network, one thread, small models in memory."""

import gc
import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

from checked_types import install

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
# Before anything of Sordino is imported: the types and shapes in its signatures are checked on every
# call. Not in `stats`, which checks its arguments itself, in words: its tests hand it wrong ones on purpose; nor in
# those that Numba compiles.
_UNHOOKED = {"sordino.stats", "sordino.kernel", "sordino.matching", "sordino.minhash", "sordino.ragged"}
_SPEC = find_spec("sordino")
assert _SPEC is not None and _SPEC.submodule_search_locations
install(
    [m.name for m in iter_modules(_SPEC.submodule_search_locations, "sordino.") if m.name not in _UNHOOKED],
    "checked_types.checker",
)

# While a thousand modules are imported there is nothing to collect, and a seventh of the time went into looking.
gc.disable()

_CONNECT = socket.socket.connect
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
SHAPES = ("llama", "gpt2", "gpt_neox")
# What takes longest comes first: begun last, it would keep one worker busy alone.
_LONG = (
    "e2e/test_cli.py", "unit/test_methods.py", "unit/test_train_private.py", "unit/test_audit_external.py",
    "e2e/test_resume.py", "conformance/test_metamorphic.py", "unit/test_canaried.py", "e2e/test_demo.py",
    "unit/test_shadows.py", "unit/test_audit_text.py", "unit/test_other_texts.py", "unit/test_dp_families.py",
    "conformance/test_attacks.py", "unit/test_dp_mutants.py", "e2e/test_resume_private.py",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, and leave the rest in order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(_LONG)}
    assert all(path.is_file() for path in places), "a file of _LONG is gone"
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Collect garbage again; what was imported is not frozen, as Hypothesis asks who refers to it."""
    gc.enable()


def _connect_loopback(self: socket.socket, address: Any) -> None:
    inside = self.family == socket.AF_UNIX or (isinstance(address, tuple) and address[0] in _LOOPBACK)
    if not inside:
        raise AssertionError(f"A test tried to reach {address}; tests use no network.")
    _CONNECT(self, address)


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Sockets reach nothing but this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _connect_loopback)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_flushing():
    """Flushing to the disk is for power cuts, which no test has: it costs milliseconds, tens of thousands of times.

    That files are flushed, and in which order, is for tests with a stand-in of their own; commands that run as
    processes of their own flush as ever.
    """
    with pytest.MonkeyPatch.context() as patch:
        # As the real one, it refuses what is no open file.
        patch.setattr(os, "fsync", lambda file: os.fstat(file) and None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared data sets, models and tokenizers."""
    folder = Path(os.environ.get("SORDINO_DATA", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("needs the shared data: set SORDINO_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tokenizer of the bundled model: 2,048 tokens, with <s>, </s> and <pad>."""
    from sordino.config import ModelConfig
    from sordino.model import load_tokenizer

    return load_tokenizer(ModelConfig())


def _module(shape: str, vocabulary: int, context: int) -> Any:
    import transformers

    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1}
    if shape == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=context, initializer_range=0.2, **common
        )
        return transformers.GPT2LMHeadModel(config)
    common |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": context}
    if shape == "opt":
        config = transformers.OPTConfig(ffn_dim=64, word_embed_proj_dim=32, init_std=0.2, pad_token_id=2, **common)
        return transformers.OPTForCausalLM(config)
    common |= {"intermediate_size": 64, "initializer_range": 0.2}
    if shape == "gpt_neox":
        return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**common))
    # Grouped-query attention; heads of 16 where the family allows that they are not hidden size / heads.
    common |= {"num_key_value_heads": 2}
    own = {
        "llama": ("Llama", {"tie_word_embeddings": False}),
        "qwen2": ("Qwen2", {"tie_word_embeddings": False}),
        "qwen3": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 16}),
        "mistral": ("Mistral", {"sliding_window": None}),
        "gemma": ("Gemma", {"head_dim": 16}),
        "gemma2": ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_implementation": "eager"}),
    }
    name, more = own[shape]
    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**common, **more))


@pytest.fixture(scope="session")
def make_model(tokenizer) -> Callable[..., Any]:
    """`(shape, seed=0, context=64)` -> a random 2-layer model, hidden size 32, with the bundled tokenizer.

    Shapes: `llama` (grouped-query attention), `gpt2` (head tied to the embedding), `gpt_neox`, and for
    tests of whole families `qwen2`, `qwen3` (norms of queries and keys), `mistral`, `opt`, `gemma` and `gemma2`.
    """

    import torch

    from sordino.config import ModelConfig
    from sordino.model import Model

    # Imported here, not above: tests of arithmetic should not wait for torch.
    torch.set_num_threads(1)

    def make(shape: str = "llama", seed: int = 0, context: int = 64) -> Model:
        torch.manual_seed(seed)
        module = _module(shape, len(tokenizer), context).eval()
        return Model(module=module, tokenizer=tokenizer, config=ModelConfig(device="cpu"))

    return make


@pytest.fixture(scope="session")
def llama(make_model) -> Any:
    """A random Llama that tests only read."""
    return make_model("llama")


@pytest.fixture(scope="session", params=SHAPES)
def model(request, make_model) -> Any:
    """Each shape in turn, to be read only."""
    return make_model(request.param)
