"""The mend of the ROS 2 wheels' CMake files, on a fake tree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

CMAKE = """set_target_properties(std_msgs::std_msgs__rosidl_generator_py PROPERTIES
  INTERFACE_INCLUDE_DIRECTORIES "${_IMPORT_PREFIX}/include/std_msgs;\
/opt/python/cp3%(v)s-cp3%(v)s/include/python3.%(v)s;\
/opt/python/cp3%(v)s-cp3%(v)s/lib/python3.%(v)s/site-packages/numpy/_core/include"
)
"""


@pytest.fixture(scope="module")
def relocate(repository: Path) -> ModuleType:
    path = repository / "tools" / "setup" / "relocate_wheels.py"
    spec = importlib.util.spec_from_file_location("relocate_wheels", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_both_directories_are_replaced_for_every_python(relocate: ModuleType, minor: int) -> None:
    text = relocate.relocate(CMAKE % {"v": minor}, "/py/include", "/np/include")
    assert '"${_IMPORT_PREFIX}/include/std_msgs;/py/include;/np/include"' in text
    assert "/opt/python" not in text


def test_a_path_with_backslashes_or_groups_is_taken_literally(relocate: ModuleType) -> None:
    assert relocate.relocate("/opt/python/cp311-cp311/include/python3.11", r"/a\1b", "/n") == r"/a\1b"


def test_numpy_1_headers_are_known_too(relocate: ModuleType) -> None:
    old = "/opt/python/cp310-cp310/lib/python3.10/site-packages/numpy/core/include"
    assert relocate.relocate(old, "/py", "/np") == "/np"


def test_the_tree_is_mended_once(relocate: ModuleType, tmp_path: Path) -> None:
    cmake = tmp_path / "std_msgs" / "cmake"
    cmake.mkdir(parents=True)
    (cmake / "export_py.cmake").write_text(CMAKE % {"v": 11}, encoding="utf-8")
    (cmake / "fine.cmake").write_text("set(x /usr/include/python3.11)\n", encoding="utf-8")
    (cmake / "notes.txt").write_text("/opt/python/cp311-cp311/include/python3.11\n", encoding="utf-8")

    assert relocate.relocate_tree(tmp_path, "/py", "/np") == 1
    assert "/py;/np" in (cmake / "export_py.cmake").read_text(encoding="utf-8")
    assert (cmake / "fine.cmake").read_text(encoding="utf-8") == "set(x /usr/include/python3.11)\n"
    assert "/opt/python" in (cmake / "notes.txt").read_text(encoding="utf-8"), "only CMake files are touched"
    assert relocate.relocate_tree(tmp_path, "/py", "/np") == 0
