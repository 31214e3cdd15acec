"""The affinity: which voxels are neighbours, and how much each listens to each (equation 3)."""
