"""What the tables need to know of a student: the data set behind it, and the negatives it was trained with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from geopurify_core.errors import InvalidConfigError

if TYPE_CHECKING:
    from geopurify_core.purification.student.trained import Student

SAMPLINGS = ("hybrid", "macro")
# Data sets tell themselves by how they name their scenes, which exported students list.
_SCENE_NAMES = {
    "scannet": re.compile(r"\bscene\d{4}_\d{2}\b"),
    "matterport": re.compile(r"\b\w+_region\d+\b"),
    "rooms": re.compile(r"\bapartment_\d+\b|\bprocedural\b"),
}


def student_about(
    student: Student | None, trained_on: str | None = None, sampling: str | None = None
) -> dict[str, Any]:
    """Plain values for a report; empty where there is no student.

    Args:
        student: Its description says what it was trained on, and by which recipe.
        trained_on: Overrules what the description says of the data set: ``scannet``, ``matterport``, ….
        sampling: Overrules what the recipe says of the negatives: ``hybrid`` or ``macro``.

    Raises:
        InvalidConfigError: ``sampling`` is neither.

    Returns:
        ``trained_on`` (empty where unknown), ``sampling`` (empty where unknown, or where InfoNCE played no part),
        ``teacher`` (its name, empty where unknown), ``description``, ``licence``, ``voxel_size_m``.
    """
    if sampling is not None and sampling not in SAMPLINGS:
        raise InvalidConfigError("--sampling", sampling, f"Choose one of {', '.join(SAMPLINGS)}.")
    if student is None:
        return {}
    info = student.info
    teacher = info.extra.get("teacher")
    return {
        "trained_on": data_set_of(info.trained_on) if trained_on is None else trained_on,
        "sampling": sampling_of(info.extra.get("recipe")) if sampling is None else sampling,
        "teacher": str(teacher.get("name", "")) if isinstance(teacher, dict) else "",
        "description": info.trained_on,
        "licence": info.licence,
        "voxel_size_m": info.voxel_size_m,
    }


def data_set_of(description: str) -> str:
    """The data set that a student's description speaks of; empty for none or more than one."""
    found = [name for name, pattern in _SCENE_NAMES.items() if pattern.search(description)]
    return found[0] if len(found) == 1 else ""


def sampling_of(recipe: Any) -> str:
    """``hybrid``, ``macro`` (no micro negatives), or empty: no recipe, or one without InfoNCE."""
    if not isinstance(recipe, dict) or not isinstance(recipe.get("micro"), int) or not recipe.get("contrast", 1):
        return ""
    return "hybrid" if recipe["micro"] else "macro"
