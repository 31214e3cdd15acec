"""Labelling a whole map, with an engine whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from geopurify_core.evaluation.semantic import evaluate_map


class Scene:
    class_names = ("wall", "floor", "chair")

    def ground_truth(self, points_m: np.ndarray) -> np.ndarray:
        return np.array([0, 0, 1, 1, 255], dtype=np.uint8)


class Engine:
    snapshot = SimpleNamespace(centers_m=np.zeros((5, 3), dtype=np.float32))

    def segment(self, labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
        assert labels == ["wall", "floor", "chair"]
        return np.array([0, 1, 1, -1, 2], dtype=np.int32), np.ones(5, dtype=np.float32)


def test_known_labels() -> None:
    result = evaluate_map(Engine(), Scene())  # type: ignore[arg-type]
    assert result.iou == {"wall": pytest.approx(1 / 2), "floor": pytest.approx(1 / 3)}
    assert result.miou == pytest.approx(5 / 12)
    assert result.miou_all == pytest.approx(5 / 18)  # the chair, absent from the truth, counts 0
    assert result.accuracy == pytest.approx(1 / 2)


def test_only_the_named_classes_count() -> None:
    class Two(Engine):
        def segment(self, labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
            assert labels == ["floor", "lamp"]
            return np.array([0, 0, 0, 1, 1], dtype=np.int32), np.ones(5, dtype=np.float32)

    result = evaluate_map(Two(), Scene(), ["floor", "lamp"])  # type: ignore[arg-type]
    assert result.iou == {"floor": pytest.approx(1 / 2)}  # the voxels of the wall are left out
    assert result.accuracy == pytest.approx(1 / 2)
