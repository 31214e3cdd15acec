"""Commands of this room."""


def select() -> None:
    """Being built."""
    raise NotImplementedError
