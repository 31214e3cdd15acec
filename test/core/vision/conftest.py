"""Tiny networks whose right answers are known, written as real ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

onnx = pytest.importorskip("onnx", reason="pip install onnx: the tests build small networks with it")

MakeModel = Callable[..., Path]
MakeConfig = Callable[..., Path]


def save(path: Path, nodes: Sequence[Any], tensors: dict[str, np.ndarray], inputs: dict, outputs: dict) -> Path:
    helper = onnx.helper
    kinds = {"float": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64, "uint8": onnx.TensorProto.UINT8}
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


@pytest.fixture
def colour_net(tmp_path: Path) -> MakeModel:
    """A segmenter that labels a pixel by its strongest colour: logit = gain * value, at half resolution."""

    def make(*, size: Any = 32, gain: float = 0.1, labels: int = 3, layout: str = "nchw", argmax: bool = False) -> Path:
        node = onnx.helper.make_node
        weight = np.zeros((labels, 3, 1, 1), np.float32)
        weight[np.arange(labels), np.arange(labels) % 3] = gain
        half = size // 2 if isinstance(size, int) else None
        nodes = [node("Conv", ["images", "w"], ["scores"], strides=[2, 2])]
        shape: list = [1, labels, half, half]
        kind = "float"
        if argmax:
            nodes.append(node("ArgMax", ["scores"], ["out"], axis=1, keepdims=0))
            shape, kind = [1, half, half], "int64"
        elif layout == "nhwc":
            nodes.append(node("Transpose", ["scores"], ["out"], perm=[0, 2, 3, 1]))
            shape = [1, half, half, labels]
        else:
            nodes.append(node("Identity", ["scores"], ["out"]))
        inputs = {"images": ("float", [1, 3, size, size])}
        return save(tmp_path / "colours.onnx", nodes, {"w": weight}, inputs, {"out": (kind, shape)})

    return make


@pytest.fixture
def constant_net(tmp_path: Path) -> MakeModel:
    """A network that answers every image with the same tensors."""

    def make(outputs: dict[str, np.ndarray], size: int = 64) -> Path:
        nodes = [onnx.helper.make_node("Identity", [f"c_{name}"], [name]) for name in outputs]
        tensors = {f"c_{name}": value for name, value in outputs.items()}
        kinds = {name: ("float" if v.dtype == np.float32 else "int64", list(v.shape)) for name, v in outputs.items()}
        return save(tmp_path / "constant.onnx", nodes, tensors, {"images": ("float", [1, 3, size, size])}, kinds)

    return make


@pytest.fixture
def broken_net(tmp_path: Path) -> Path:
    """A network that loads and then fails on every image (a reshape to an impossible size)."""
    node = onnx.helper.make_node("Reshape", ["images", "shape"], ["out"])
    tensors = {"shape": np.array([1, 3, 7, 7], np.int64)}
    inputs, outputs = {"images": ("float", [1, 3, "h", "w"])}, {"out": ("float", [1, 3, 7, 7])}
    return save(tmp_path / "broken.onnx", [node], tensors, inputs, outputs)


@pytest.fixture
def write_yaml(tmp_path: Path) -> MakeConfig:
    """Write a mapping as a YAML file in the test's folder."""

    def write(values: Any, name: str = "model.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write
