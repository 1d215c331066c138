"""Converts the models file's entries and the loaded models to documents. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from textmill.backend.response_models import ModelView
from textmill.core.catalog.finetunings import as_document
from textmill.core.catalog.models_file import ModelSpec
from textmill.core.catalog.served_models import ServedModel


def base_names(specs: Iterable[ModelSpec], served: Mapping[str, ServedModel]) -> dict[str, str]:
    """Return the name of the base of each fine-tuned model whose base is served too."""
    known = list(specs)
    found = {}
    for spec in known:
        base = _base_of(spec, known, served)
        if base is not None:
            found[spec.name] = base
    return found


def _base_of(
    spec: ModelSpec, known: Sequence[ModelSpec], served: Mapping[str, ServedModel]
) -> str | None:
    model = served.get(spec.name)
    if model is None or model.finetuning is None:
        return None
    for other in known:
        base = served.get(other.name)
        if other is spec or (base is None and other.adapter is not None):
            continue  # before it is loaded, a model with an adapter is known by its source alone
        revision = base.revision if base else None
        if model.finetuning.is_from(source=other.source, revision=revision):
            return other.name
    return None


def model_view(
    spec: ModelSpec,
    served: ServedModel | None,
    num_loaded: int,
    *,
    is_default: bool,
    base_model: str | None = None,
) -> ModelView:
    """Present a model of the models file.

    Args:
        spec: its entry in the models file.
        served: what a worker reported when it loaded the model.
        num_loaded: number of workers that have it loaded.
        is_default: whether it is the default model.
        base_model: the name of the served model that it was fine-tuned from.
    """
    finetuning = None
    if served is not None and served.finetuning is not None:
        finetuning = as_document(served.finetuning) | {"base_model": base_model}
    page = f"/models/{spec.name}"
    return {
        "name": spec.name,
        "description": spec.description,
        "default": is_default,
        "family": served.family if served else None,
        "path": served.path if served else None,
        "parameters": served.num_parameters if served else None,
        "context_length": served.context_length if served else None,
        "vocabulary_size": served.vocabulary_size if served else None,
        "dtype": served.dtype if served else None,
        "instruction_set": served.instruction_set if served else None,
        "kernels_note": served.kernels_note if served else None,
        "revision": served.revision if served else None,
        "loaded_by": num_loaded,
        "finetuning": finetuning,
        "links": {
            "curve": f"{page}/loss.svg" if served is not None and served.has_curve else None,
            "card": f"{page}/card" if served is not None and served.has_text else None,
        },
    }
