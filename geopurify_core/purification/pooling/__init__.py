"""Geometry-Guided Pooling: features or scores, T steps along the affinity (equation 4)."""
