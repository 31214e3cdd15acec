"""What the tests of training share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def released_sampler(shared_dir: Path) -> Mapping[str, Any]:
    """Picks of the released code's hybrid sampler, and what it picked from."""
    path = shared_dir / "golden" / "geopurify" / "sampler.npz"
    if not path.exists():
        pytest.skip("golden data of the released code are not there")
    return np.load(path)
