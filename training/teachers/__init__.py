"""Teachers: frozen descriptions of geometry that a student learns its affinity from (see ``base.py``)."""
