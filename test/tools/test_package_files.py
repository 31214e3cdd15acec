"""What describes the packages must agree: package.xml, setup.py, CMakeLists.txt, the files on disk."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

MISSION_DEPENDENCIES = {
    "rclpy", "sensor_msgs", "sensor_msgs_py", "std_srvs", "geometry_msgs", "nav_msgs", "visualization_msgs",
    "diagnostic_msgs", "cv_bridge", "message_filters", "tf2_ros", "vision_msgs", "launch", "launch_ros",
    "geopurify_interfaces", "python3-numpy", "python3-scipy", "python3-yaml", "python3-open3d-pip",
}  # fmt: skip


def package(path: Path) -> ET.Element:
    return ET.parse(path).getroot()


def test_every_interface_is_built(repository: Path) -> None:
    folder = repository / "geopurify_interfaces"
    listed = set(
        re.findall(r'"((?:msg|srv)/\w+\.(?:msg|srv))"', (folder / "CMakeLists.txt").read_text(encoding="utf-8"))
    )
    on_disk = {str(path.relative_to(folder)) for kind in ("msg", "srv") for path in folder.glob(f"{kind}/*.{kind}")}
    assert listed == on_disk and on_disk


@pytest.mark.parametrize("name", ["package.xml", "geopurify_interfaces/package.xml"])
def test_package_files_are_format_3_with_one_version(repository: Path, name: str) -> None:
    root = package(repository / name)
    assert root.get("format") == "3"
    assert root.findtext("license") == "Apache-2.0"
    assert re.fullmatch(r"[^@\s]+@[^@\s]+\.[a-z]+", root.find("maintainer").attrib["email"])  # type: ignore[union-attr]
    version = re.search(r'version="([\d.]+)"', (repository / "setup.py").read_text(encoding="utf-8"))
    assert version is not None and root.findtext("version") == version.group(1)
    assert f"## [{version.group(1)}]" in (repository / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_root_package_declares_what_its_users_need(repository: Path) -> None:
    root = package(repository / "package.xml")
    declared = {item.text for kind in ("depend", "exec_depend") for item in root.iter(kind)}
    assert declared >= MISSION_DEPENDENCIES
    assert root.findtext("export/build_type") == "ament_python"


def test_every_ros_package_the_node_imports_is_declared(repository: Path) -> None:
    root = package(repository / "package.xml")
    declared = {item.text for kind in ("depend", "exec_depend") for item in root.iter(kind)}
    text = "\n".join(path.read_text(encoding="utf-8") for path in (repository / "geopurify_ros").rglob("*.py"))
    imported = set(
        re.findall(r"^\s*(?:from|import) ((?:\w+_msgs(?:_py)?)|rclpy|std_srvs|tf2_ros|message_filters)\b", text, re.M)
    )
    assert imported <= declared | {"tf2_msgs"}


def test_colcon_sees_both_packages(repository: Path) -> None:
    defaults = yaml.safe_load((repository / "colcon_defaults.yaml").read_text(encoding="utf-8"))
    for verb in ("build", "list", "test"):
        paths = [repository / path for path in defaults[verb]["base-paths"]]
        assert [path / "package.xml" for path in paths if not (path / "package.xml").exists()] == []
        assert len(paths) == 2


def test_pyproject_describes_tools_only(repository: Path) -> None:
    """A [project] table would make pip ignore setup.py's entry points; a [build-system] would fight ament_python."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    document = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(document) == {"tool"}


def test_every_data_file_of_the_packages_is_installed(repository: Path) -> None:
    """setup.py names endings; a data file with another one would be missing from every installation but ours."""
    text = (repository / "setup.py").read_text(encoding="utf-8")
    listed = re.search(r"for ending in \(([^)]*)\)", text)
    assert listed is not None
    endings = set(re.findall(r'"(\w+)"', listed.group(1)))
    files = [path for path in (repository / "geopurify_core").rglob("*") if path.is_file()]
    data = [path for path in files if path.suffix not in {".py", ".pyc", ".nbi", ".nbc"}]
    assert [str(path) for path in data if path.suffix.lstrip(".") not in endings] == []
