"""Compares the models file with what this worker holds, from its start to its end.

A model that is new is loaded while the others write, and served beside them. For one that was
changed or taken out the worker asks for its own end: a new process starts with the new file, and
holds each model once. Before that the new file is proven to load, so that a mistake in it changes
nothing. A model that cannot be loaded stays out, alone, and the board says why; it is tried again
when the models file or its own files change, and after growing pauses. Knows nothing of engines,
Celery and signals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from textmill.core.catalog.file_state import ModelState
from textmill.core.catalog.models_file import Catalog, ModelSpec
from textmill.core.errors import StorageUnavailable
from textmill.engine.models.errors import ModelLoadError, in_one_line
from textmill.engine.models.loading import LoadedModel
from textmill.engine.requests import EngineStopped
from textmill.worker.problems import Board, NoBoard
from textmill.worker.trials import TRIAL_SECONDS, TrialUnfinished

WATCH_MODELS_SECONDS = 5.0
START_TRIAL_SECONDS = 300.0  # of one model among several at the start: the others are to be served
FIRST_PAUSE_SECONDS = 60.0  # before a model whose files did not change is tried again; it doubles
LONGEST_PAUSE_SECONDS = 1800.0
T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Actions:
    """What the watch does to its worker.

    Attributes:
        add: serve a model that was loaded; raises where that cannot be.
        renew: tell visitors what a model's folder now says of it; its weights are the same.
        ask_end: end in good order, for this reason, and be started again.
    """

    add: Callable[[LoadedModel], None]
    renew: Callable[[LoadedModel], None]
    ask_end: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A line of the models file at one look; ``catalog`` is that state of the file."""

    spec: ModelSpec
    state: ModelState
    catalog: Catalog


@dataclass(frozen=True, slots=True)
class _Failure:
    """A model that could not be loaded, and when it is tried again though nothing changed."""

    wanted: _Wanted
    pause_seconds: float
    next_at: float


def _trust(spec: ModelSpec, patience_seconds: float) -> None:
    """For loaders that need no trial."""


class ModelWatch:
    """The models of one worker.

    Attributes:
        models: what is held, by name.
        is_loading: whether a model is being loaded at this moment.
    """

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        load: Callable[[ModelSpec], LoadedModel],
        check: Callable[[ModelSpec], object] | None = None,
        *,
        try_out: Callable[[ModelSpec, float], None] = _trust,
        board: Board | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hold nothing yet.

        Args:
            catalog: gives the present catalogue of what this worker is to serve; another object
                means that the file changed.
            load: loads a model.
            check: where no model may be loaded beside those that write, sees that its files can be
                used; then a new model, too, takes a new process.
            try_out: sees, within so many seconds, that a model does no harm; called before it is
                loaded or checked, and raises a ``ModelLoadError`` where it does.
            board: is told what is left out.
            clock: in seconds.
        """
        self.models: dict[str, LoadedModel] = {}
        self.is_loading = False
        self._catalog = catalog
        self._load = load
        self._check = check
        self._try_out = try_out
        self._board = board or NoBoard()
        self._clock = clock
        self._held: dict[str, ModelState] = {}
        self._proven: dict[str, ModelState] = {}  # another model than before, and it loads
        self._failed: dict[str, _Failure] = {}
        self._seen: dict[str, ModelState] = {}  # at the last look
        self._has_asked = False

    def load_all(self) -> None:
        """Load what the file names, at the start.

        A model that cannot be loaded is left out: the others are not to wait for it.

        Raises:
            ModelLoadError: none can be loaded.
        """
        catalog = self._catalog()
        patience = START_TRIAL_SECONDS if len(catalog.models) > 1 else TRIAL_SECONDS
        failures = []
        for spec in catalog:
            if (error := self._load_at_start(spec, catalog, patience)) is not None:
                failures.append((spec, error))
        if not self.models:  # nothing is kept waiting: what was only slow gets all its time
            slow = [spec for spec, error in failures if isinstance(error, TrialUnfinished)]
            for spec in slow:
                self._load_at_start(spec, catalog, TRIAL_SECONDS)
        self._board.send()
        if not self.models:
            words = [f"{spec.name}: {in_one_line(error)}" for spec, error in failures]
            raise ModelLoadError(f"No model can be loaded. {' '.join(words)}")

    def _load_at_start(
        self, spec: ModelSpec, catalog: Catalog, patience_seconds: float
    ) -> Exception | None:
        wanted = _Wanted(spec, ModelState.of(spec), catalog)
        try:
            self._try_out(spec, patience_seconds)
            self._hold(wanted, self._load(spec))
        except Exception as error:  # libraries raise all sorts; the other models are to be served
            self._fail(wanted, error)
            return error
        return None

    def look(self, actions: Actions) -> None:
        """Compare once, and do what follows.

        Raises:
            StorageUnavailable: a new model cannot be announced; the next look tries again.
        """
        if self._has_asked:
            return
        catalog = self._catalog()
        all_wanted = [_Wanted(spec, ModelState.of(spec), catalog) for spec in catalog]
        states = {wanted.spec.name: wanted.state for wanted in all_wanted}
        self._forget_failures(set(states))
        # Else somebody may still be writing the file, or copying weights.
        is_settled = states == self._seen
        self._seen = states
        try:
            for wanted in all_wanted:
                if self._is_dealt_with(wanted):
                    continue
                if wanted.spec.name not in self._held and self._check is None:
                    self._add(wanted, actions)
                elif is_settled:
                    self._prove(wanted, actions)
        finally:
            self._board.send()
        reasons = self._reasons(all_wanted)
        if reasons and is_settled:
            self._has_asked = True
            actions.ask_end(", ".join(reasons))

    def _forget_failures(self, names: set[str]) -> None:
        """Of models that nobody wants any more."""
        for name in self._failed.keys() - names:
            del self._failed[name]
            self._board.tell("model", name, None)

    def _is_dealt_with(self, wanted: _Wanted) -> bool:
        name = wanted.spec.name
        known = (self._held.get(name), self._proven.get(name))
        return wanted.state in known or self._has_failed(wanted)

    def _has_failed(self, wanted: _Wanted) -> bool:
        """Whether it was tried, nothing changed since, and its next try is yet to come."""
        failed = self._failed.get(wanted.spec.name)
        return failed is not None and _is_same(failed, wanted) and self._clock() < failed.next_at

    def _reasons(self, all_wanted: Sequence[_Wanted]) -> list[str]:
        """Why a new process is needed; none where it would lose a model, or hold none."""
        reasons = []
        can_hold = False
        for wanted in all_wanted:
            name = wanted.spec.name
            if wanted.state == self._held.get(name):
                can_hold = True
            elif wanted.state == self._proven.get(name):
                can_hold = True
                reasons.append(f"the model {name} is {'changed' if name in self._held else 'new'}")
            elif name in self._held:
                return []
        if not can_hold:
            return []
        names = {wanted.spec.name for wanted in all_wanted}
        return reasons + [f"the model {n} was taken out" for n in self._held if n not in names]

    def _add(self, wanted: _Wanted, actions: Actions) -> None:
        model = self._attempt(wanted, self._load)
        if model is None:
            return
        try:
            actions.add(model)
        except StorageUnavailable:
            raise
        except EngineStopped:
            return  # the worker ends
        except Exception as error:  # as with loading: its failure stays its own
            self._fail(wanted, error)
        else:
            self._hold(wanted, model)

    def _prove(self, wanted: _Wanted, actions: Actions) -> None:
        """See that a model can be loaded, and whether it is another one than before."""
        name = wanted.spec.name
        if self._check is not None:
            if self._attempt(wanted, self._check) is not None:
                self._proven[name] = wanted.state
                self._succeed(name)
            return
        model = self._attempt(wanted, self._load)
        if model is None:
            return
        self._succeed(name)
        if _weights_of(model) != _weights_of(self.models[name]):
            self._proven[name] = wanted.state
            return
        actions.renew(model)
        self._held[name] = wanted.state

    def _attempt(self, wanted: _Wanted, call: Callable[[ModelSpec], T]) -> T | None:
        self.is_loading = True
        try:
            self._try_out(wanted.spec, TRIAL_SECONDS)
            return call(wanted.spec)
        except Exception as error:  # libraries raise all sorts, and those that write must go on
            self._fail(wanted, error)
            return None
        finally:
            self.is_loading = False

    def _hold(self, wanted: _Wanted, model: LoadedModel) -> None:
        self.models[wanted.spec.name] = model
        self._held[wanted.spec.name] = wanted.state
        self._succeed(wanted.spec.name)

    def _succeed(self, name: str) -> None:
        self._failed.pop(name, None)
        self._board.tell("model", name, None)

    def _fail(self, wanted: _Wanted, error: Exception) -> None:
        name, reason = wanted.spec.name, in_one_line(error)
        before = self._failed.get(name)
        pause = FIRST_PAUSE_SECONDS
        if before is not None and _is_same(before, wanted):
            pause = min(2 * before.pause_seconds, LONGEST_PAUSE_SECONDS)
        delay = 0.0 if isinstance(error, TrialUnfinished) and before is None else pause
        self._failed[name] = _Failure(wanted, pause, self._clock() + delay)
        self._board.tell("model", name, reason)
        log.error(
            "model_not_loaded",
            model=name,
            reason=reason,
            next_try=f"when the models file or the model's own files change, or in {delay:g} s",
        )


def _is_same(failed: _Failure, wanted: _Wanted) -> bool:
    """Whether neither the models file nor the model's own files changed since."""
    return failed.wanted.catalog is wanted.catalog and failed.wanted.state == wanted.state


def _weights_of(model: LoadedModel) -> tuple[str, str]:
    return model.info.revision, model.info.dtype
