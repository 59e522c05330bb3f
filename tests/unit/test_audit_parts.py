"""An interrupted audit goes on: passes by shards, decoding and canaries by parts, and nothing of it twice."""

import numpy as np
import pytest

from sordino.audit import parts
from sordino.audit.parts import in_parts, in_shards, statistics_in_shards
from sordino.collect import collect
from sordino.run import Run
from sordino.serialize import Tokens
from sordino.signals import Store


def some_tokens(count, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        target = np.ones(5 + number % 4, dtype=bool)
        target[0] = False
        made.append(Tokens(ids=rng.integers(3, 2048, len(target)).astype(np.int32), target=target, text=f"{number}"))
    return made


class Killed(BaseException):
    """As a signal would end a process."""


def test_a_pass_that_is_killed_goes_on_with_its_shards(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SHARD", 4)
    tokens, store, read, ticked = some_tokens(11), Store(tmp_path), [], []

    def measure(some):
        if len(read) == 2 and not ticked:
            raise Killed
        read.append(len(some))
        made = collect(llama, some)
        return made, {"twice": 2 * made.logprob}

    with pytest.raises(Killed):
        statistics_in_shards(store, "key", tokens, measure, ticked.append)
    assert read == [4, 4] and sorted(p.name for p in tmp_path.iterdir()) == ["key.0-4", "key.4-8"]
    ticked.append(0)
    found, more = statistics_in_shards(store, "key", tokens, measure, ticked.append)
    assert read == [4, 4, 3] and ticked == [0, 4, 4]
    whole = collect(llama, tokens)
    assert found.offsets.tolist() == whole.offsets.tolist() and found.others is None
    for name, column in whole.present().items():
        np.testing.assert_allclose(found.present()[name], column, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(more["twice"], 2 * found.logprob)
    store.put("key", found, {})
    store.drop("key")
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_few_records_are_one_shard(tmp_path):
    columns = in_shards(
        Store(tmp_path), "key", some_tokens(3), lambda some: {"n": np.arange(len(some))}, lambda n: None
    )
    assert columns["n"].tolist() == [0, 1, 2] and not list(tmp_path.iterdir())


def test_parts_that_are_there_are_not_made_again(tmp_path):
    run, made, ticked = Run(tmp_path / "run"), [], []

    def work(start, stop):
        made.append((start, stop))
        return [str(i) for i in range(start, stop)]

    expected = [str(i) for i in range(7)]
    assert in_parts(run, "passages/key", 7, 3, work, str) == expected
    assert made == [(0, 3), (3, 6), (6, 7)]
    (run.private / "passages/key/3-6.json").unlink()
    made.clear()
    assert in_parts(run, "passages/key", 7, 3, work, str, tick=ticked.append) == expected
    assert made == [(3, 6)] and ticked == [3, 1]
    assert in_parts(run, "passages/other", 0, 3, work, str) == [] and len(made) == 1
    assert (run.private / "passages/key/0-3.json").stat().st_mode & 0o777 == 0o600
