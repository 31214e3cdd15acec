"""Commands of this room."""


def rooms() -> None:
    """Being built."""
    raise NotImplementedError


def ablate() -> None:
    """Being built."""
    raise NotImplementedError
