"""A deletion from request to certificate: each step a transaction of the ledger, each of which goes on after a crash.

`received → planned → executed → verified → certified`; any may end in `failed`, and a failed request may be made anew.
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from sordino.deletions import Deletions
from sordino.errors import SordinoError, UnlearningError
from sordino.evidence import digest
from sordino.results import DeletionRequest, Scores, State, UnlearnPlan, Verification, decode, encode
from sordino.run import Run, write_atomic
from sordino.unlearn.base import Child, Deletion, Method, Say, Ticker, create_child, finish_child
from sordino.unlearn.methods import discover, named
from sordino.unlearn.planning import Policy, decide
from sordino.unlearn.requests import new_request, resolve

__all__ = ["Transaction", "begin", "find"]

_SILENT: Say = lambda text: None  # noqa: E731 - a named default reads better than a def
_UNSEEN: Ticker = lambda name, total: lambda done: None  # noqa: E731


@dataclass(frozen=True, kw_only=True)
class Transaction:
    """One request on one run, as far as the ledger says it has come."""

    run: Run
    deletions: Deletions
    request: DeletionRequest
    say: Say = _SILENT
    ticker: Ticker = _UNSEEN
    received: Deletion | None = None
    """What the request came to when it was received, where this is the process that did."""

    @property
    def folder(self) -> Path:
        """Where what belongs to the request is kept; only its owner can read it."""
        return self.deletions.folder(self.request.id)

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.deletions.standing(self.request.id).state

    def resolved(self) -> Deletion:
        """The request against the records of the run; raises what `resolve` raises."""
        return resolve(self.run, self.request)

    @cached_property
    def deletion(self) -> Deletion:
        """The same once it was carried out, when its records change no more: proofs, scores and attacks all ask."""
        return self.resolved()

    def plan(self, policy: Policy) -> UnlearnPlan:
        """Choose the cheapest sufficient tier and write it down; what was planned or failed is planned anew.

        Raises `UnlearningError` where no plan is sufficient, or the request was carried out: its plan is evidence then.
        """
        with self.deletions.lock(self.request.id):
            state = self.state
            self._refuse_done(state)
            deletion = self.received if self.received and state == "received" else self.resolved()
            made = decide(deletion, policy, discover(), self.deletions.spent(self.run.card.name))
            if state != "received":
                self._again(state)
            write_atomic(self.folder / "plan.json", encode(made), mode=0o600)
            told = {"tier": made.tier, "method": made.method, "share": made.share}
            self.deletions.advance(self.request.id, "planned", **told)
        return made

    def _again(self, state: State) -> None:
        """Receive a request anew that was planned or failed; what it left half done goes away."""
        if state == "planned":
            self.deletions.advance(self.request.id, "failed", why="planned anew")
        path = self.folder / "child"
        if path.exists():
            left = self.run.path.parent / path.read_text()
            if left.is_dir() and Run.open(left).card.status == "unlearning":
                shutil.rmtree(left)
            path.unlink()
        self.deletions.receive(self.request)

    def _refuse_done(self, state: State) -> None:
        if state in ("executed", "verified", "certified"):
            message = f"Request {self.request.id} was carried out already ({state})."
            hint = f"`sordino unlearn verify {self.run.path}` is next; whoever else is to go takes a new request."
            raise UnlearningError(message, hint if state != "certified" else "Its certificate is in its folder.")

    def _refuse_unplanned(self) -> None:
        state = self.state
        self._refuse_done(state)
        if state != "planned":
            message = f"Request {self.request.id} has no plan ({state})."
            hint = f"Make one: `sordino unlearn plan {self.run.path} --request {self.request.id}`."
            raise UnlearningError(message, hint)

    @property
    def planned(self) -> UnlearnPlan:
        """The plan that was made; raises `UnlearningError` where none was."""
        path = self.folder / "plan.json"
        if not path.exists():
            raise UnlearningError(f"Request {self.request.id} has no plan.", "Make one: `sordino unlearn plan`.")
        return decode(path.read_bytes(), UnlearnPlan, str(path))

    def execute(self) -> Run:
        """Carry out the plan, from where it was interrupted; returns the run that has forgotten.

        What went wrong for good ends the request as "failed", and is raised; the run is as it was. Raises
        `UnlearningError` where the request is not one that is planned, `RunError` where another process works on it.
        """
        with self.deletions.lock(self.request.id):
            self._refuse_unplanned()
            plan, deletion = self.planned, self.resolved()
            method = named(plan.method)
            run = self._child(deletion, plan)
            child = Child(run=run, seed=_seed(deletion), settings=plan.settings, say=self.say, ticker=self.ticker)
            with run.lock():
                made = self._made(deletion, child, method, plan)
            weights = {"before": self.run.card.model["weights"], "after": made.card.model["weights"]}
            told = {"child": made.card.name, **weights, **self._forgotten(deletion)}
            self.deletions.advance(self.request.id, "executed", **told)
        return made

    def _made(self, deletion: Deletion, child: Child, method: Method, plan: UnlearnPlan) -> Run:
        try:
            child.run.tidy()
            child = self._searched(deletion, child, plan)
            return finish_child(deletion, child, method, method.run(deletion, child))
        except SordinoError as error:
            self.deletions.advance(self.request.id, "failed", why=type(error).__name__)
            again = f"`sordino unlearn plan {self.run.path} --request {self.request.id}` plans it anew"
            self.say(f"the request failed, and {self.run.path.name} is as it was; {again}")
            raise

    def _forgotten(self, deletion: Deletion) -> dict[str, int]:
        return {"records": len(deletion.forget), "subjects": len({e.record.unit for e in deletion.forget})}

    def _child(self, deletion: Deletion, plan: UnlearnPlan) -> Run:
        """The run that was begun, or a new one: its name is on disk before anything is done in it."""
        path = self.folder / "child"
        if path.exists():
            return Run.open(self.run.path.parent / path.read_text())
        made = create_child(deletion, plan.method)
        write_atomic(path, made.card.name.encode(), mode=0o600)
        return made

    def _searched(self, deletion: Deletion, child: Child, plan: UnlearnPlan) -> Child:
        budget = int(plan.settings.get("search", 0))
        settings = {name: value for name, value in plan.settings.items() if name != "search"}
        child = dataclasses.replace(child, settings=settings)
        if not budget:
            return child
        from sordino.unlearn.tuning.searching import search

        self.say(f"searching the settings of {plan.method}: {budget} trials")
        return search(deletion, child, plan.method, budget)

    @property
    def child(self) -> Run:
        """The run that has forgotten; raises `UnlearningError` where it was not made yet."""
        path = self.folder / "child"
        if not path.exists() or self.state in ("received", "planned", "failed"):
            message = f"Request {self.request.id} was not carried out ({self.state})."
            raise UnlearningError(message, f"`sordino unlearn run {self.run.path}` does it.")
        return Run.open(self.run.path.parent / path.read_text())

    def scores(self, which: Literal["before", "after"]) -> Scores:
        """What the model says of the records, before or after; measured once."""
        from sordino.unlearn.measuring.scoring import score
        from sordino.unlearn.proving import evaluated

        path = self.folder / f"scores-{which}.json"
        if not path.exists():
            run = self.run if which == "before" else self.child
            deletion = evaluated(self.deletion, self.child, self.planned)

            def ticker(name: str, total: int) -> Callable[[int], None]:
                return self.ticker(f"{which}, {name}", total)

            made = score(run, deletion, generate=True, ticker=ticker, folder=self.folder / "signals")
            write_atomic(path, encode(made), mode=0o600)
        return decode(path.read_bytes(), Scores, str(path))

    def verify(self, qualification: str | None = None, *, robustness: bool = True) -> Verification:
        """Measure what is left and judge it; `qualification` names the one to cite (None: the newest that fits).

        Raises `UnlearningError` where the request was not carried out, or is certified: its evidence stays as it is.
        """
        from sordino.unlearn.proving import verified

        with self.deletions.lock(self.request.id):
            if self.state == "certified":
                message = f"Request {self.request.id} is certified: what was found stays as it is."
                raise UnlearningError(message, f"`sordino unlearn check {self.folder}` computes it again.")
            made = verified(self, qualification, robustness=robustness)
            write_atomic(self.folder / "verification.json", encode(made), mode=0o600)
            self.deletions.advance(self.request.id, "verified", outcome=made.outcome)
        return made

    @property
    def verification(self) -> Verification:
        """The verification that was made; raises `UnlearningError` where none was."""
        path = self.folder / "verification.json"
        if not path.exists():
            hint = f"Do it first: `sordino unlearn verify {self.run.path}`."
            raise UnlearningError(f"Request {self.request.id} was not verified ({self.state}).", hint)
        return decode(path.read_bytes(), Verification, str(path))

    def certify(self, key: Path, *, issuer: str = "", purge: bool = False) -> Path:
        """Issue the signed certificate; with `purge`, remove first what still holds the deleted. Returns its path."""
        from sordino.unlearn.proving import certified

        with self.deletions.lock(self.request.id):
            return certified(self, key, issuer=issuer, purge=purge)


def _seed(deletion: Deletion) -> int:
    """The seed of a method's own randomness, from that of the run and the request."""
    words = [abs(deletion.run.card.seed), int(digest(deletion.request.id), 16)]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def begin(  # noqa: PLR0913 - who asks, of what, on which terms, and who is told
    run: Run,
    kind: Literal["subject", "record"],
    names: Sequence[str],
    *,
    acknowledged: bool = False,
    policy: Policy | None = None,
    say: Say = _SILENT,
    ticker: Ticker = _UNSEEN,
) -> Transaction:
    """Receive a request: it is checked against the records of `run` and written to the ledger beside it.

    With a `policy` it is received only where there is a plan for it, which `Transaction.plan` then makes.
    """
    request = new_request(run, kind, names, acknowledged=acknowledged)
    deletion, deletions = resolve(run, request), Deletions.open(run.path.parent)
    if policy is not None:
        decide(deletion, policy, discover(), deletions.spent(run.card.name))
    deletions.receive(request)
    return Transaction(run=run, deletions=deletions, request=request, say=say, ticker=ticker, received=deletion)


def find(run: Run, request: str | None = None, *, say: Say = _SILENT, ticker: Ticker = _UNSEEN) -> Transaction:
    """The request `request` on `run`, or the only one that is open; raises `UnlearningError` where that is not one."""
    deletions = Deletions.open(run.path.parent)
    mine = [one for one in deletions.requests() if one.run == run.card.name]
    if request is not None:
        mine = [one for one in mine if one.id.startswith(request)]
    elif len(mine) > 1:
        mine = [one for one in mine if one.open]
    if len(mine) != 1:
        unknown = request is not None and not mine
        what = f"is no request {request!r}" if unknown else f"are {len(mine)} requests that could be meant"
        hint = "`sordino unlearn plan` makes one, `sordino unlearn ledger` lists them; --request names one."
        raise UnlearningError(f"On {run.path} there {what}.", hint)
    return Transaction(run=run, deletions=deletions, request=deletions.request(mine[0].id), say=say, ticker=ticker)
