"""Commands of this room."""


def prepare() -> None:
    """Being built."""
    raise NotImplementedError
