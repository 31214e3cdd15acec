"""The root package `geopurify_ros` (ament_python): the ROS nodes and the ROS-free core they wire."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = "geopurify_ros"
ROOT = Path(__file__).resolve().parent


def requirements(name: str) -> list[str]:
    """The lines of a requirements file that name a package."""
    lines = (ROOT / "tools" / "setup" / name).read_text(encoding="utf-8").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip() and not line.startswith(("#", "-"))]


def share(folder: str) -> list[tuple[str, list[str]]]:
    """Every file below ``folder``, installed under the package's share folder with the same layout."""
    files: dict[str, list[str]] = {}
    for path in sorted(ROOT.glob(f"{folder}/**/*")):
        if path.is_file() and "__pycache__" not in path.parts:
            relative = path.relative_to(ROOT)
            files.setdefault(f"share/{NAME}/{relative.parent}", []).append(str(relative))
    return list(files.items())


setup(
    name=NAME,
    version="0.3.0",
    description="A semantic voxel map from an RGB-D stream that answers text, as a ROS 2 node and as a library.",
    author="GeoPurify-ROS maintainers",
    maintainer="GeoPurify-ROS maintainers",
    maintainer_email="maintainers@geopurify-ros.invalid",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["geopurify_core", "geopurify_core.*", "geopurify_ros", "geopurify_ros.*"]),
    package_data={
        "geopurify_core": [f"**/*.{ending}" for ending in ("safetensors", "json", "yaml", "csv", "txt")],
        "geopurify_ros": ["**/*.yaml", "**/*.xml"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *share("launch"),
        *share("config"),
    ],
    install_requires=["setuptools", *requirements("requirements-core.txt")],
    extras_require={
        "training": requirements("requirements-training.txt"),
        "cluster": ["ray>=2.40,<3"],
        "test": ["pytest", "pytest-timeout", "hypothesis"],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "geopurify = geopurify_core.cli:main",
            "mapping_node = geopurify_ros.mapping_node:main",
            "replay_node = geopurify_ros.replay_node:main",
        ]
    },
)
