"""Distillation: a student learns from a geometric teacher which points of a scene belong together.

``recipe`` says how, ``shards`` and ``pieces`` bring the data, ``samples`` and ``objective`` make a loss of them,
``train`` runs it, ``export`` makes the file that purification loads.
"""
