"""A furnished apartment from a seed, walked through with an RGB-D camera; nothing is read from disk.

Every surface, object and pose is known exactly, so the same code serves the demo, the tests and the training of
``nano``.
"""

from geopurify_core.datasets.synthetic.apartment import Apartment, SceneObject
from geopurify_core.datasets.synthetic.dataset import SyntheticDataset
from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES, UNLABELLED

__all__ = ["CLASS_NAMES", "UNLABELLED", "Apartment", "SceneObject", "SyntheticDataset"]
