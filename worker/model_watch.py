"""Keeps the models of a worker in step with the models file.

A new model is loaded while the others decode, and served beside them. After a change or removal of
a model the worker asks to be restarted: the new process reads the new file, and no model is in
memory twice. Before that the changed model is loaded on trial, so that a mistake in it changes
nothing. A model that cannot be loaded is left out by itself and reported; it is tried again when
the models file or its own files change, and after growing pauses. Knows nothing of engines, Celery
and signals.
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
START_TRIAL_SECONDS = 300.0  # of one model among several at the start: the others wait
FIRST_PAUSE_SECONDS = 60.0  # before an unchanged model is tried again; it doubles
LONGEST_PAUSE_SECONDS = 1800.0
T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Actions:
    """The calls of the watch to its worker.

    Attributes:
        add: serve a loaded model; raises if that is impossible.
        renew: store the new record of a model whose weights are unchanged.
        ask_end: stop for this reason, and be started again.
    """

    add: Callable[[LoadedModel], None]
    renew: Callable[[LoadedModel], None]
    ask_end: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An entry of the models file, its files, and the catalogue that it was read from."""

    spec: ModelSpec
    state: ModelState
    catalog: Catalog


@dataclass(frozen=True, slots=True)
class _Failure:
    """A model that could not be loaded, and when it is tried again if nothing changes."""

    wanted: _Wanted
    pause_seconds: float
    next_at: float


def _trust(spec: ModelSpec, patience_seconds: float) -> None:
    """A trial that always succeeds, for loaders that need none."""


class ModelWatch:
    """The models of one worker.

    Args:
        catalog: returns the current catalogue of the models to serve; a new object means that the
            file changed.
        load: loads a model.
        check: given where no model may be loaded beside those that decode; checks that a model's
            files are usable, and then a new model needs a new process too.
        try_out: checks within a number of seconds that a model does no harm; called before the
            model is loaded or checked, and raises a ``ModelLoadError`` if it does.
        board: gets reports of the models that are left out.
        clock: in seconds.

    Attributes:
        models: the loaded models, by name.
        is_loading: whether a model is being loaded now.
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
        self.models: dict[str, LoadedModel] = {}
        self.is_loading = False
        self._catalog = catalog
        self._load = load
        self._check = check
        self._try_out = try_out
        self._board = board or NoBoard()
        self._clock = clock
        self._held: dict[str, ModelState] = {}
        self._proven: dict[str, ModelState] = {}  # changed models that were loaded on trial
        self._failed: dict[str, _Failure] = {}
        self._seen: dict[str, ModelState] = {}  # at the last call of look
        self._has_asked = False

    def load_all(self) -> None:
        """Load the models of the file, at the start.

        A model that cannot be loaded is left out, so that the others do not wait for it.

        Raises:
            ModelLoadError: no model can be loaded.
        """
        catalog = self._catalog()
        patience = START_TRIAL_SECONDS if len(catalog.models) > 1 else TRIAL_SECONDS
        failures = []
        for spec in catalog:
            if (error := self._load_at_start(spec, catalog, patience)) is not None:
                failures.append((spec, error))
        if not self.models:  # no other model waits: slow ones get all their time
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
        except Exception as error:  # libraries raise anything; the other models must be served
            self._fail(wanted, error)
            return error
        return None

    def look(self, actions: Actions) -> None:
        """Compare once, and act on the differences.

        Raises:
            StorageUnavailable: the record of a new model cannot be stored; the next call tries
                again.
        """
        if self._has_asked:
            return
        catalog = self._catalog()
        all_wanted = [_Wanted(spec, ModelState.of(spec), catalog) for spec in catalog]
        states = {wanted.spec.name: wanted.state for wanted in all_wanted}
        self._forget_failures(set(states))
        # Otherwise the file or the weights may still be being written.
        is_settled = states == self._seen
        self._seen = states
        try:
            for wanted in all_wanted:
                if self._is_done(wanted):
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
        """Forget failures of models that are no longer in the file."""
        for name in self._failed.keys() - names:
            del self._failed[name]
            self._board.report("model", name, None)

    def _is_done(self, wanted: _Wanted) -> bool:
        name = wanted.spec.name
        known = (self._held.get(name), self._proven.get(name))
        return wanted.state in known or self._has_failed(wanted)

    def _has_failed(self, wanted: _Wanted) -> bool:
        """Whether it failed, nothing changed since, and its next attempt is not due."""
        failed = self._failed.get(wanted.spec.name)
        return failed is not None and _is_same(failed, wanted) and self._clock() < failed.next_at

    def _reasons(self, all_wanted: Sequence[_Wanted]) -> list[str]:
        """Why a new process is needed; empty if it would lose a model, or serve none."""
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
            return  # the worker is stopping
        except Exception as error:  # as in loading: the other models must not be affected
            self._fail(wanted, error)
        else:
            self._hold(wanted, model)

    def _prove(self, wanted: _Wanted, actions: Actions) -> None:
        """Load a changed model on trial, and find out whether its weights differ."""
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
        except Exception as error:  # libraries raise anything, and the loaded models must go on
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
        self._board.report("model", name, None)

    def _fail(self, wanted: _Wanted, error: Exception) -> None:
        name, reason = wanted.spec.name, in_one_line(error)
        before = self._failed.get(name)
        pause = FIRST_PAUSE_SECONDS
        if before is not None and _is_same(before, wanted):
            pause = min(2 * before.pause_seconds, LONGEST_PAUSE_SECONDS)
        delay = 0.0 if isinstance(error, TrialUnfinished) and before is None else pause
        self._failed[name] = _Failure(wanted, pause, self._clock() + delay)
        self._board.report("model", name, reason)
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
