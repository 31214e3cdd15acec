"""How class names are worded before a text encoder reads them, for evaluation by a closed list of labels."""

from __future__ import annotations

from geopurify_core.errors import InvalidConfigError
from geopurify_core.labels import LabelSet

FRAME = "a {} in a scene"  # OpenScene's and GeoPurify's
WORDINGS = ("names", "scene", "openscene_code")


def label_prompts(labels: LabelSet, wording: str = "names", spelling: str = "") -> tuple[str, ...]:
    """One text for each class.

    Args:
        labels: The classes.
        wording: ``names``: as they are (the ``xdecoder`` backbone adds the frame and its 81 templates itself, as
            GeoPurify does). ``scene``: "a {} in a scene", but a catch-all class stays a bare "other", as OpenScene
            does. ``openscene_code``: the same, except that in Matterport's 40, 80 and 160 classes the last but one
            (of 40: "air vent") becomes "other" as well, because OpenScene's code goes by its place in the list.
        spelling: ``openscene``, ``geopurify`` or empty; see ``LabelSet.spelled``.

    Raises:
        InvalidConfigError: An unknown wording.

    Source: evaluation.md F (OpenScene ``util/util.py``), geopurify.md A.11.
    """
    if wording not in WORDINGS:
        raise InvalidConfigError("wording", wording, f"Choose one of {', '.join(WORDINGS)}.")
    names = labels.spelled(spelling)
    if wording == "names":
        return names
    other = {labels.names.index(labels.catch_all)} if labels.catch_all else set()
    if wording == "openscene_code" and labels.name.startswith("matterport"):
        other.add(len(labels) - 2)
    return tuple("other" if i in other else FRAME.format(name) for i, name in enumerate(names))
