"""Labelled scans with posed images (ScanNet, Matterport3D): reading them, and lifting 2D features to their points."""
