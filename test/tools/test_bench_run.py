"""The benchmark runner: finds areas, survives a broken one, writes JSON."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def runner(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_runner", repository / "tools" / "bench" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "good.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass R:\n    a: int\n\n"
        "def run(quick):\n    return {'ratio': R(3).a, 'quick': quick, 'steps': [{'ms': 1.5}]}\n",
        encoding="utf-8",
    )
    (folder / "bad.py").write_text("def run(quick):\n    raise ValueError('no camera')\n", encoding="utf-8")
    (folder / "_helper.py").write_text("raise AssertionError\n", encoding="utf-8")
    (folder / "run.py").write_text("raise AssertionError\n", encoding="utf-8")
    areas = module.areas
    monkeypatch.setattr(module, "areas", lambda: areas(folder))
    return module


def test_every_area_but_helpers_is_found(runner: ModuleType) -> None:
    assert sorted(runner.areas()) == ["bad", "good"]


def test_one_area_can_be_chosen(runner: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out" / "bench.json"
    assert runner.main(["--only", "good", "--quick", "--out", str(out)]) == 0
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["results"]["good"]["ratio"] == 3 and document["results"]["good"]["quick"] is True
    assert document["machine"]["cores"] >= 1 and document["machine"]["torch"] and document["machine"]["commit"]


def test_a_broken_area_is_reported_and_hides_nothing(runner: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert runner.main(["--out", str(out)]) == 1
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert results["bad"]["error"] == "ValueError: no camera"
    assert results["good"]["ratio"] == 3


def test_an_unknown_area_is_refused(runner: ModuleType) -> None:
    with pytest.raises(SystemExit):
        runner.main(["--only", "nothing"])


def test_nested_results_become_dotted_rows(runner: ModuleType) -> None:
    assert dict(runner.leaves({"a": {"b": 1}, "c": [1, 2], "d": [{"e": 3}]})) == {"a.b": 1, "c": [1, 2], "d.0.e": 3}
