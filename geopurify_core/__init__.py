"""GeoPurify core: an RGB-D stream becomes a voxel map that answers text. No ROS import anywhere below here."""

__version__ = "0.3.0"
