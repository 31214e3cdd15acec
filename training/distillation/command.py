"""Commands of this room."""


def distil() -> None:
    """Being built."""
    raise NotImplementedError


def export() -> None:
    """Being built."""
    raise NotImplementedError
