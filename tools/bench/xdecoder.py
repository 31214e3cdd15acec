"""X-Decoder with random weights: milliseconds for an image of 480 x 640, against the plain network, and memory.

The baseline is the same network as one would first write it: eager, float32, standard memory layout, gradients not
switched off, and the masks of every layer at full size, as the reference computes them. Text is encoded once in both.
Each variant runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LABELS = ["wall", "office chair", "red mug"]


def run(quick: bool) -> dict[str, Any]:
    """Milliseconds (best of the repetitions) and ratios for Focal-T, and Focal-L where there is time."""
    variants = ("focalt",) if quick else ("focalt", "focall")
    return {"image_480x640": {variant: _own_process(variant, 1 if quick else 3) for variant in variants}}


def _own_process(variant: str, repeats: int) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--case", variant, str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def case(variant: str, repeats: int) -> dict[str, Any]:
    """All figures of one variant, in this process."""
    import torch

    from geopurify_core.vision import load_backbone

    def backbone(**options: Any) -> Any:
        return load_backbone("xdecoder", weights="random", variant=variant, text_cache="none", **options)

    rgb = np.kron(np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8), np.ones((40, 40, 1), np.uint8))
    result: dict[str, Any] = {}
    for device, precisions in {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}.items():
        if device == "cuda" and not torch.cuda.is_available():
            continue
        figures = result[device] = {}
        for precision in precisions:
            network = backbone(device=device, precision=precision)
            network.encode_image(rgb)  # encodes the reference words too
            if precision == "fp32":
                figures["peak_memory_mib"] = _peak_mib(device)
                figures |= _text(network) if device == "cpu" else {}
                plain = copy.deepcopy(network._network.model).to(memory_format=torch.contiguous_format)
                image = torch.from_numpy(rgb).permute(2, 0, 1).contiguous().to(device)
            # In turn, so that other work on the machine slows both.
            ours, theirs = _best_ms((lambda: network._network.queries([rgb]), lambda: _plain(plain, image)), repeats)  # noqa: B023
            figures |= {
                f"{precision}_network_ms": ours,
                f"{precision}_speedup": theirs / ours,
                "plain_network_ms": theirs,
            }
            figures[f"{precision}_encode_image_ms"] = _best_ms((lambda: network.encode_image(rgb),), repeats)[0]  # noqa: B023
    return result


def _plain(model: Any, image: Any) -> Any:
    """The baseline; the sum makes a device finish."""
    model.requires_grad_(True)
    mask_features, _, scales = model.sem_seg_head.pixel_decoder(model.backbone(model.prepare(image)))
    heads = model.predictor(scales, mask_features, every_layer=True)[-1]
    model.requires_grad_(False)
    return float(heads.masks.detach().sum())


def _text(network: Any) -> dict[str, float]:
    start = time.perf_counter()
    network.encode_text(LABELS)
    new = (time.perf_counter() - start) * 1e3 / len(LABELS)
    return {"new_text_ms": new, "known_text_ms": _best_ms((lambda: network.encode_text(LABELS),), 3)[0] / len(LABELS)}


def _peak_mib(device: str) -> float:
    if device == "cuda":
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return round(peak)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def _best_ms(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    times: list[list[float]] = []
    for _ in range(repeats):
        times.append([])
        for call in calls:
            start = time.perf_counter()
            call()
            times[-1].append((time.perf_counter() - start) * 1e3)
    return [float(best) for best in np.min(times, axis=0)]


if __name__ == "__main__":
    if "--case" in sys.argv:
        print(json.dumps(case(sys.argv[-2], int(sys.argv[-1]))))
    else:
        print(json.dumps(run(quick="--quick" in sys.argv), indent=1))
