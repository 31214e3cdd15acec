"""A teacher without weights: local geometry and over-segmentation of a scan, as descriptors (see docs)."""

from training.teachers.geometric.teacher import GeometricTeacher, Settings

__all__ = ["GeometricTeacher", "Settings"]
