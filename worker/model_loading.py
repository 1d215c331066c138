"""Loads the models of a worker at its start and builds the watch over them."""

from __future__ import annotations

import structlog

from textmill.core.catalog.live import LiveCatalog
from textmill.core.catalog.models_file import Catalog, ModelSpec
from textmill.core.errors import SettingsError
from textmill.core.problems import MODELS_FILE
from textmill.core.settings import Settings
from textmill.core.workers import worker_host
from textmill.engine.models.loading import LoadedModel, default_num_slots, load
from textmill.engine.models.placement import Placement, has_gpu, place
from textmill.engine.models.sharing import SharedParts
from textmill.engine.models.sources import prepare
from textmill.worker.model_watch import ModelWatch
from textmill.worker.problems import ProblemBoard
from textmill.worker.trials import FOLDER, Trials

log = structlog.get_logger(__name__)


def load_models(settings: Settings) -> ModelWatch:
    """Load the models that this worker serves.

    Raises:
        SettingsError, ModelLoadError: no model can be served; the message is one sentence.
    """
    board = ProblemBoard(settings.database_url, worker_host())
    try:
        catalog = LiveCatalog(settings, settings.serve)
    except SettingsError as error:
        board.report("models_file", MODELS_FILE, str(error))
        board.send()
        raise
    watch = _watch(settings, catalog, board)
    watch.load_all()
    return watch


def _watch(settings: Settings, catalog: LiveCatalog, board: ProblemBoard) -> ModelWatch:
    cache_dir = settings.home / "models"

    def report(sentence: str) -> None:
        log.info("model_progress", step=sentence)

    _log_arithmetic(place("auto", settings.kernel_dir, report, settings.kernels_isa))
    num_slots = settings.num_slots or default_num_slots(settings.kernel_dir, settings.kernels_isa)

    memory_dir = (settings.kernel_dir or settings.home / "kernels") / FOLDER
    trials = Trials(
        cache_dir, settings.kernel_dir, memory_dir, num_slots, report, settings.kernels_isa
    )

    shared = SharedParts()

    def current() -> Catalog:
        board.report("models_file", MODELS_FILE, catalog.problem)
        return catalog.current

    def load_one(spec: ModelSpec) -> LoadedModel:
        log.info("model_loading", model=spec.name, source=spec.source)
        with trials.loading(spec):
            return load(
                spec,
                cache_dir=cache_dir,
                dtype=spec.dtype,
                num_slots=num_slots,
                kernel_dir=settings.kernel_dir,
                instruction_set=settings.kernels_isa,
                report=report,
                shared=shared,
            )

    def check(spec: ModelSpec) -> object:
        return prepare(spec.source, spec.adapter, cache_dir, report)

    # While a step is being recorded on a GPU, no other thread may use the GPU: there a new model
    # needs a new process.
    is_shared = not has_gpu()
    return ModelWatch(
        current, load_one, None if is_shared else check, try_out=trials.try_out, board=board
    )


def _log_arithmetic(placement: Placement) -> None:
    """Say once what computes: the kernels, a GPU, or PyTorch alone."""
    if placement.kernels is not None:
        log.info(
            "kernels_loaded",
            instruction_set=placement.kernels.instruction_set,
            compiler=placement.kernels.compiler,
        )
    elif placement.device != "cpu":
        log.info("gpu_used", device=placement.device)
    else:
        log.warning(
            "no_kernels", reason=placement.reason, consequence="PyTorch computes alone and slower"
        )
