"""What goes wrong with a teacher's weights."""

from __future__ import annotations

from geopurify_core.errors import GeoPurifyError


class TeacherError(GeoPurifyError):
    """Weights of a teacher that cannot be read, or do not fit its architecture, or a cloud it cannot digest."""
