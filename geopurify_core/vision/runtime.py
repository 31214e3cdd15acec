"""One face for ONNX Runtime and LiteRT (TensorFlow Lite): a single image tensor in, raw tensors out."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import BackboneError

_ONNX_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's face: ``real = (stored - zero_point) * scale`` where ``scale`` is not 0; unknown sizes are -1."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True)
class Runtime:
    """A loaded network with one input.

    Attributes:
        input: What it takes.
        outputs: What it gives, in order.
        digest: First 12 hex digits of the model file's SHA-256.
    """

    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    digest: str
    _invoke: Callable[[NDArray[Any]], list[NDArray[Any]]]
    _lock: threading.Lock

    def run(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        """Raw output tensors. Raises BackboneError where the runtime refuses."""
        try:
            with self._lock:
                return self._invoke(tensor)
        except Exception as error:
            raise BackboneError(
                "model", f"{tensor.dtype}{tensor.shape}", f"The network failed on this input: {error}"
            ) from error


def open_model(path: Path, num_threads: int = 0, providers: Sequence[str] = ()) -> Runtime:
    """Load a ``.onnx`` or ``.tflite`` file.

    Args:
        path: The model file.
        num_threads: 0 takes the machine's cores, four at most.
        providers: ONNX Runtime execution providers, first choice first; the CPU by default.

    Raises:
        BackboneError: The file is missing, damaged or of another kind, or the runtime is not installed.
    """
    threads = num_threads or min(4, os.cpu_count() or 1)
    openers = {".onnx": _open_onnx, ".tflite": _open_tflite}
    opener = openers.get(path.suffix.lower())
    if opener is None:
        raise BackboneError("model", str(path), "Give a .onnx or .tflite file.")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise BackboneError("model", str(path), f"The model file cannot be read: {error}") from error
    try:
        return opener(path, threads, list(providers), digest)
    except BackboneError:
        raise
    except Exception as error:  # both runtimes raise their own kinds for damaged files
        raise BackboneError("model", str(path), f"The file cannot be loaded as a network: {error}") from error


def _open_onnx(path: Path, threads: int, providers: list[str], digest: str) -> Runtime:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackboneError("model", str(path), "ONNX models need ONNX Runtime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Spinning threads would take the cores that fusion and the robot's other nodes need between two images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=providers or ["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise BackboneError(
            "model.inputs", [item.name for item in inputs], "Export a network with a single image input."
        )

    def info(item: Any) -> TensorInfo:
        shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in item.shape)
        return TensorInfo(item.name, shape, np.dtype(_ONNX_DTYPES.get(item.type, np.int64)))

    def invoke(tensor: NDArray[Any]) -> list[NDArray[Any]]:
        return [np.asarray(output) for output in session.run(None, {inputs[0].name: tensor})]

    return Runtime(
        info(inputs[0]), tuple(info(item) for item in session.get_outputs()), digest, invoke, threading.Lock()
    )


def _open_tflite(path: Path, threads: int, providers: list[str], digest: str) -> Runtime:
    del providers
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise BackboneError("model", str(path), "TFLite models need LiteRT: pip install ai-edge-litert") from error
    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1:
        raise BackboneError(
            "model.inputs", [item["name"] for item in inputs], "Export a network with a single image input."
        )

    def info(item: dict[str, Any]) -> TensorInfo:
        scale, zero_point = item["quantization"]
        signature = item.get("shape_signature", item["shape"])
        return TensorInfo(
            item["name"], tuple(int(n) for n in signature), np.dtype(item["dtype"]), float(scale), int(zero_point)
        )

    def invoke(tensor: NDArray[Any]) -> list[NDArray[Any]]:
        interpreter.set_tensor(inputs[0]["index"], tensor)
        interpreter.invoke()
        return [np.asarray(interpreter.get_tensor(item["index"])) for item in outputs]

    return Runtime(info(inputs[0]), tuple(info(item) for item in outputs), digest, invoke, threading.Lock())


def dequantise(stored: NDArray[Any], info: TensorInfo) -> NDArray[np.float32]:
    """Real values of a raw output tensor."""
    values = stored.astype(np.float32)
    if info.scale:
        values -= np.float32(info.zero_point)
        values *= np.float32(info.scale)
    return values


def quantise(values: NDArray[np.float32], info: TensorInfo) -> NDArray[Any]:
    """Stored values for an input tensor of an integer type."""
    scale = info.scale or 1.0
    limits = np.iinfo(info.dtype)
    stored = np.clip(np.rint(values / np.float32(scale)) + info.zero_point, limits.min, limits.max)
    return np.asarray(stored, dtype=info.dtype)
