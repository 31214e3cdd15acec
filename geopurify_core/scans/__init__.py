"""Labelled scans with posed images (ScanNet, Matterport3D): reading them, and lifting 2D features to their points."""

from __future__ import annotations

from geopurify_core.scans.lift import lift
from geopurify_core.scans.lift_settings import LiftSettings
from geopurify_core.scans.matterport import read_matterport
from geopurify_core.scans.scan import NO_LABEL, LiftedScan, Scan
from geopurify_core.scans.scannet import read_labelled_cloud, read_scannet

__all__ = [
    "NO_LABEL",
    "LiftSettings",
    "LiftedScan",
    "Scan",
    "lift",
    "read_labelled_cloud",
    "read_matterport",
    "read_scannet",
]
