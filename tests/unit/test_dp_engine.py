"""Clipping: the bound holds, the noise comes once, nothing escapes, and the model is left as it was."""

import copy
import math

import pytest
import torch
from dp_models import a_batch, brute, norms_of, prepared, row_losses
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sordino.dp.engine import Clipper, Clipping
from sordino.errors import DPError

MODES = ("book-keeping", "two-backward", "one-by-one")
IDS, MASK = a_batch(rows=4, length=7)


class Scaled(nn.Module):
    """A module that no rule is made for."""

    def __init__(self, width: int = 3, *, closed: bool = False) -> None:
        super().__init__()
        self.scale, self.mix, self.closed = nn.Parameter(torch.ones(width)), nn.Linear(width, width), closed

    def forward(self, x):
        if self.closed and float(x.sum()) == 7:
            return x
        return self.mix(torch.sin(x * self.scale)) * self.scale


class Net(nn.Module):
    """An embedding, padding, norms, a generic module and a head."""

    def __init__(self, *, closed: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 3, padding_idx=0)
        self.norm, self.rms, self.odd = nn.LayerNorm(3), nn.RMSNorm(3), Scaled(closed=closed)
        self.head = nn.Linear(3, 5)

    def forward(self, ids):
        return self.head(self.rms(self.odd(self.norm(self.table(ids)))))


def net(seed: int = 0, **kwargs) -> nn.Module:
    torch.manual_seed(seed)
    return Net(**kwargs).double()


NET_IDS = torch.tensor([[1, 2, 2, 0], [3, 3, 3, 3], [4, 0, 0, 0], [9, 10, 1, 2]])


def net_losses(module, ids=NET_IDS, scale=1.0):
    return module(ids).square().sum((1, 2)) * scale


def net_brute(module, rows: int = 1):
    found = []
    for first in range(0, 4, rows):
        module.zero_grad()
        net_losses(module, NET_IDS[first : first + rows]).sum().backward()
        found.append({n: p.grad.clone() for n, p in module.named_parameters()})
    module.zero_grad()
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 2])
def test_padding_norms_and_modules_without_a_rule(mode, rows):
    module = net()
    wanted = net_brute(module, rows)
    with Clipper(module, Clipping(norm=1e9), mode=mode) as clipper:
        found = clipper.add(lambda: net_losses(module), units=4 // rows)
        clipper.finish(None, 1.0)
    torch.testing.assert_close(found, norms_of(wanted), rtol=1e-10, atol=0)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, sum(one[name] for one in wanted), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_kinds_of_clipping(mode):
    module = net()
    alone = net_brute(module)
    norms = norms_of(alone)
    with Clipper(module, Clipping(norm=0.5, kind="automatic"), mode=mode) as clipper:
        clipper.add(lambda: net_losses(module), units=4)
        clipper.finish(None, 1.0)
    for name, parameter in module.named_parameters():
        wanted = sum(one[name] * 0.5 / (norm + 0.01) for one, norm in zip(alone, norms, strict=True))
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-14)
    with Clipper(module, Clipping(norm=0.5, kind="per-layer"), mode=mode) as clipper:
        clipper.add(lambda: net_losses(module), units=4)
        clipper.finish(None, 1.0)
        groups = clipper.patched.group
    assert set(groups.values()) == {"table", "norm", "rms", "odd", "head"}
    share = 0.5 / math.sqrt(5)
    for name, parameter in module.named_parameters():
        wanted = torch.zeros_like(parameter)
        for one in alone:
            layer = torch.cat([g.flatten() for n, g in one.items() if groups[n] == groups[name]]).norm()
            wanted += one[name] * min(1.0, share / float(layer))
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    scales=st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4),
    weights=st.floats(1e-3, 1e3),
    bound=st.floats(1e-3, 1e3),
    how=st.tuples(st.sampled_from(MODES), st.sampled_from(["flat", "automatic", "per-layer"])),
    removed=st.integers(0, 3),
)
def test_no_unit_moves_the_sum_by_more_than_the_bound(scales, weights, bound, how, removed):
    module = net()
    with torch.no_grad():
        module.odd.scale.mul_(weights)
        module.head.weight.mul_(weights)
    scale = torch.tensor(scales, dtype=torch.float64)

    def total(present):
        with Clipper(module, Clipping(norm=bound, kind=how[1]), mode=how[0]) as clipper:
            clipper.add(lambda: net_losses(module, NET_IDS[present], scale[present]), units=int(present.sum()))
            clipper.finish(None, 1.0)
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    assert (total(torch.arange(4) >= 0) - total(torch.arange(4) != removed)).norm() <= bound * (1 + 1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_adds_nothing(mode, bad):
    module = net()
    alone = net_brute(module)
    scale = torch.tensor([1.0, bad, 1.0, 1.0], dtype=torch.float64)
    with Clipper(module, Clipping(norm=1e9), mode=mode) as clipper:
        if mode == "one-by-one":
            with pytest.raises(DPError, match="give `add` one unit at a time"):
                clipper.add(lambda: net_losses(module, scale=scale), units=4)
            parts = [slice(k, k + 1) for k in range(4)]
            each = [clipper.add(lambda p=p: net_losses(module, NET_IDS[p], scale[p]), units=1) for p in parts]
            norms = torch.cat(each)
        else:
            norms = clipper.add(lambda: net_losses(module, scale=scale), units=4)
        clipper.finish(None, 1.0)
    assert norms.isfinite().tolist() == [True, False, True, True]
    for name, parameter in module.named_parameters():
        wanted = sum(alone[unit][name] for unit in (0, 2, 3))
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["book-keeping", "two-backward"])
def test_nothing_finite_is_an_empty_batch(mode):
    module = net()
    with Clipper(module, Clipping(), mode=mode) as clipper:
        clipper.add(lambda: net_losses(module, scale=math.nan), units=4)
        clipper.finish(None, 1.0)
    assert all(not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_noise_comes_once_a_step_and_an_empty_batch_is_noise(mode):
    module, drawn = net(), []

    def noise(name, tensor):
        drawn.append(name)
        tensor.add_(3.0)

    with Clipper(module, Clipping(norm=0.1), mode=mode) as clipper:
        clipper.add(lambda: net_losses(module), units=4)
        clipper.finish(None, 2.0)
        half = {n: p.grad.clone() for n, p in module.named_parameters()}
        for part in (slice(0, 1), slice(1, 4)):
            clipper.add(lambda part=part: net_losses(module, NET_IDS[part]), units=part.stop - part.start)
        clipper.finish(noise, 2.0)
        assert drawn == list(half)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, half[name] + 1.5)
        clipper.finish(noise, 2.0)
        assert all(bool((p.grad == 1.5).all()) for p in module.parameters())


def test_gradients_and_sums_keep_their_types():
    module = net().to(torch.bfloat16)
    seen = []
    with Clipper(module, Clipping()) as clipper:
        clipper.add(lambda: net_losses(module), units=4)
        clipper.finish(lambda name, tensor: seen.append(tensor.zero_().dtype), 1.0)
    assert set(seen) == {torch.float32}
    assert {p.grad.dtype for p in module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(make_model, fails):
    module = prepared(make_model("opt"), "full")
    own = module.model.decoder.layers[0].fc1.forward = nn.Linear(32, 64).double().forward
    before = {name: vars(part).get("forward") for name, part in module.named_modules()}
    hooks = [len(part._forward_pre_hooks) for part in module.modules()]
    try:
        with Clipper(module, Clipping()) as clipper:
            assert vars(module.lm_head)["forward"] is not None
            clipper.attach()
            if fails:
                raise KeyError("of the caller")
    except KeyError:
        assert fails
    assert {name: vars(part).get("forward") for name, part in module.named_modules()} == before
    assert module.model.decoder.layers[0].fc1.forward is own
    assert hooks == [len(part._forward_pre_hooks) for part in module.modules()]
    with pytest.raises(DPError, match="not attached"):
        clipper.add(lambda: row_losses(module, IDS, MASK), units=4)


def test_outputs_are_those_of_the_model_itself(make_model):
    for family in ("gpt2", "gemma", "opt"):
        module = prepared(make_model(family), "lora", torch.float32)
        wanted = row_losses(module, IDS, MASK)
        with Clipper(module, Clipping()):
            torch.testing.assert_close(row_losses(module, IDS, MASK), wanted, rtol=1e-6, atol=0)
            with torch.no_grad():
                torch.testing.assert_close(row_losses(module, IDS, MASK), wanted, rtol=1e-6, atol=0)


class Outside(nn.Module):
    """Uses a weight without calling the module that has it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.a(x) @ self.b.weight


@pytest.mark.parametrize("mode", ["book-keeping", "two-backward"])
def test_what_escapes_its_rule_is_refused(mode):
    module, x = Outside(), torch.randn(4, 3)
    with Clipper(module, Clipping(), mode=mode) as clipper:
        with pytest.raises(DPError, match=r"b\.weight is used outside the module"):
            clipper.add(lambda: module(x).sum(1), units=4)
        assert all(p.grad is None for p in module.parameters())
        clipper.finish(None, 1.0)
        assert all(not p.grad.any() for p in module.parameters())
        with pytest.raises(DPError, match=r"outside `Clipper\.add`"):
            module(x).sum().backward()


class Loose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterDict({"a": nn.Parameter(torch.ones(3))})
        self.more = nn.ModuleList([nn.Linear(3, 3)])


class OfPositions(nn.Module):
    """Computes on positions alone, as many as there are rows, or a multiple."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(1, 3)

    def forward(self, x):
        return self.a(x) + self.b(torch.arange(x.shape[1], dtype=x.dtype)[:, None])


@pytest.mark.parametrize("length", [6, 8])
def test_what_has_no_rows_is_refused(length):
    module, x = OfPositions(), torch.randn(4, length, 3)
    with Clipper(module, Clipping()) as clipper, pytest.raises(DPError, match=r"^b computes on a tensor of shape"):
        clipper.add(lambda: module(x).sum((1, 2)), units=4)


def test_refusals_at_the_start():
    with pytest.raises(DPError, match=r"1 is BatchNorm1d, which mixes the examples"):
        Clipper(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), Clipping())
    with pytest.raises(DPError, match="No parameter is trainable"):
        Clipper(net().requires_grad_(False), Clipping())
    with pytest.raises(DPError, match="belong to no module that computes"):
        Clipper(Loose(), Clipping())
    with pytest.raises(DPError, match=r"0 is an embedding with max_norm"):
        Clipper(nn.Sequential(nn.Embedding(3, 3, max_norm=1.0)), Clipping())
    for norm in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(DPError, match="clip norm"):
            Clipping(norm=norm)


def test_refusals_in_a_step():
    module = net()
    with Clipper(module, Clipping()) as clipper:
        for losses, units in ((lambda: net_losses(module), 3), (lambda: net_losses(module).sum(), 1),
                              (lambda: net_losses(module)[:2], 2)):  # fmt: skip
            with pytest.raises(DPError, match="units have losses of shape"):
                clipper.add(losses, units=units)
        with pytest.raises(DPError, match="depend on no trainable"):
            clipper.add(lambda: net_losses(module).detach(), units=4)
        with pytest.raises(DPError, match="expected batch"):
            clipper.finish(None, 0.0)
    module = net(closed=True)
    with Clipper(module, Clipping()) as clipper, pytest.raises(DPError, match=r"odd \(Scaled\) has no gradient of one"):
        clipper.add(lambda: net_losses(module), units=4)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("mode", MODES)
def test_as_opacus(mode):
    from opacus import GradSampleModule

    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(11, 6), nn.LayerNorm(6), nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 5)).double()
    theirs = GradSampleModule(copy.deepcopy(module), loss_reduction="sum")
    theirs(NET_IDS).square().sum().backward()
    each = [p.grad_sample for p in theirs.parameters()]
    norms = torch.stack([g.flatten(1).square().sum(1) for g in each]).sum(0).sqrt()
    bound = float(norms.median())
    with Clipper(module, Clipping(norm=bound), mode=mode) as clipper:
        found = clipper.add(lambda: net_losses(module), units=4)
        clipper.finish(None, 1.0)
    torch.testing.assert_close(found, norms, rtol=1e-10, atol=0)
    factors = (bound / norms).clamp(max=1)
    for parameter, sample in zip(module.parameters(), each, strict=True):
        wanted = torch.tensordot(factors, sample, 1)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-12)


def test_units_of_four_rows(make_model):
    module = prepared(make_model("gpt2"), "full")
    rows = brute(module, IDS, MASK)
    whole = norms_of([{name: sum(row[name] for row in rows) for name in rows[0]}])
    for mode in MODES:
        with Clipper(module, Clipping(), mode=mode) as clipper:
            found = clipper.add(lambda: row_losses(module, IDS, MASK), units=1)
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=0)
