"""``python -m training COMMAND``."""

from training.cli import app

app()
