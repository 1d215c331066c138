"""Compares the models file with what this worker holds, from its start to its end.

A model that is new is loaded while the others write, and served beside them. For one that was
changed or taken out the worker asks for its own end: a new process starts with the new file, and
holds each model once. Before that the new file is proven to load, so that a mistake in it changes
nothing. Knows nothing of engines, Celery and signals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from core.errors import StorageUnavailable
from core.model_catalog import FINETUNE_FILE, Catalog, ModelSpec
from worker.engine.requests import EngineStopped
from worker.models.errors import ModelLoadError, in_one_line
from worker.models.loading import LoadedModel

WATCH_MODELS_SECONDS = 5.0
_READ_SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model", ".gguf", ".jinja"}
T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelState:
    """What a model is made of, as far as it can be told without loading it.

    Attributes:
        files: name, bytes and instant of change of what lies in its folders.
    """

    source: str
    adapter: str | None
    dtype: str
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, spec: ModelSpec) -> ModelState:
        """Look at a model's files; a missing one is as good as any."""
        places = [spec.source] if spec.adapter is None else [spec.source, spec.adapter]
        files = [stat for place in places if Path(place).is_absolute() for stat in _stats(place)]
        return cls(spec.source, spec.adapter, spec.dtype, tuple(files))


def _stats(place: str) -> list[tuple[str, int, int]]:
    """What a loader would read; a card or a curve beside it may change at will."""
    path = Path(place)
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        chosen = [f for f in files if f.suffix in _READ_SUFFIXES and f.name != FINETUNE_FILE]
        found = [(file.name, file.stat()) for file in chosen]
    except OSError:  # gone, or going at this moment
        return []
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


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
    ) -> None:
        """Hold nothing yet.

        Args:
            catalog: gives the present catalogue of what this worker is to serve; another object
                means that the file changed.
            load: loads a model.
            check: where no model may be loaded beside those that write, sees that its files can be
                used; then a new model, too, takes a new process.
        """
        self.models: dict[str, LoadedModel] = {}
        self.is_loading = False
        self._catalog = catalog
        self._load = load
        self._check = check
        self._held: dict[str, ModelState] = {}
        self._proven: dict[str, ModelState] = {}  # another model than before, and it loads
        self._failed: dict[str, _Wanted] = {}
        self._seen: dict[str, ModelState] = {}  # at the last look
        self._has_asked = False

    def load_all(self) -> None:
        """Load what the file names, at the start.

        A model that cannot be loaded is left out, unless it is the one for requests that name
        none: the others are not to wait for it.

        Raises:
            ModelLoadError: the default one cannot be loaded, or none can.
        """
        catalog = self._catalog()
        failures = []
        for spec in catalog:
            wanted = _Wanted(spec, ModelState.of(spec), catalog)
            try:
                self._hold(wanted, self._load(spec))
            except ModelLoadError as error:
                if spec == catalog.default:
                    raise
                self._fail(wanted, error)
                failures.append(error)
        if not self.models:
            raise failures[0]

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
        # Else somebody may still be writing the file, or copying weights.
        is_settled = states == self._seen
        self._seen = states
        for wanted in all_wanted:
            if self._is_dealt_with(wanted):
                continue
            if wanted.spec.name not in self._held and self._check is None:
                self._add(wanted, actions)
            elif is_settled:
                self._prove(wanted, actions)
        reasons = self._reasons(all_wanted)
        if reasons and is_settled:
            self._has_asked = True
            actions.ask_end(", ".join(reasons))

    def _is_dealt_with(self, wanted: _Wanted) -> bool:
        name = wanted.spec.name
        known = (self._held.get(name), self._proven.get(name))
        return wanted.state in known or self._has_failed(wanted)

    def _has_failed(self, wanted: _Wanted) -> bool:
        """Whether it was tried, and neither the models file nor its own files changed since."""
        failed = self._failed.get(wanted.spec.name)
        return (
            failed is not None and failed.catalog is wanted.catalog and failed.state == wanted.state
        )

    def _reasons(self, all_wanted: Sequence[_Wanted]) -> list[str]:
        """Why a new process is needed; none where it would lose a model, or could not start."""
        reasons = []
        for wanted in all_wanted:
            name = wanted.spec.name
            if wanted.state == self._held.get(name):
                continue
            if wanted.state == self._proven.get(name):
                reasons.append(f"the model {name} is {'changed' if name in self._held else 'new'}")
            elif name in self._held or wanted.spec == wanted.catalog.default:
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
            return
        model = self._attempt(wanted, self._load)
        if model is None:
            return
        if _weights_of(model) != _weights_of(self.models[name]):
            self._proven[name] = wanted.state
            return
        actions.renew(model)
        self._held[name] = wanted.state

    def _attempt(self, wanted: _Wanted, call: Callable[[ModelSpec], T]) -> T | None:
        self.is_loading = True
        try:
            return call(wanted.spec)
        except Exception as error:  # libraries raise all sorts, and those that write must go on
            self._fail(wanted, error)
            return None
        finally:
            self.is_loading = False

    def _hold(self, wanted: _Wanted, model: LoadedModel) -> None:
        self.models[wanted.spec.name] = model
        self._held[wanted.spec.name] = wanted.state

    def _fail(self, wanted: _Wanted, error: Exception) -> None:
        self._failed[wanted.spec.name] = wanted
        log.error(
            "model_not_loaded",
            model=wanted.spec.name,
            reason=in_one_line(error),
            next_try="when the models file or the model's own files change",
        )


def _weights_of(model: LoadedModel) -> tuple[str, str]:
    return model.info.revision, model.info.dtype
