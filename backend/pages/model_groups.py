"""Groups of related models: a base and the models that were fine-tuned from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textmill.backend.response_models import ModelView


def group_models(models: Sequence[ModelView]) -> list[list[ModelView]]:
    """Group models in the order of the models file, by the position of their base.

    A base and its descendants are one group, base first. Consecutive models without relatives
    share a group.
    """
    by_name = {model["name"]: model for model in models}
    families: dict[str, list[ModelView]] = {}
    for model in models:
        families.setdefault(_root(model, by_name), []).append(model)
    groups: list[list[ModelView]] = []
    was_single = False
    for root, family in families.items():
        family.sort(key=lambda model, root=root: model["name"] != root)  # type: ignore[misc]
        is_single = len(family) == 1
        if is_single and was_single:
            groups[-1] += family
        else:
            groups.append(family)
        was_single = is_single
    return groups


def _root(model: ModelView, by_name: Mapping[str, ModelView]) -> str:
    """Return the base of all bases of a model.

    In a cycle, which only false records can make, that is the first of the names.
    """
    seen: list[str] = []
    while (name := str(model["name"])) not in seen:
        seen.append(name)
        base = by_name.get((model["finetuning"] or {}).get("base_model") or "")
        if base is None:
            return name
        model = base
    return min(seen[seen.index(name) :])
