"""Speed and memory of the sparse convolutions under the student network, against the plain matrix product.

The product is measured right before and after each forward pass, on rows of the same width, so that their ratio holds
on a busy machine too. Where MinkowskiEngine is importable (`make bench-minkowski`), the same network with the same
weights runs on it in turns with ours.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BENCH = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(BENCH.parents[1]))

_BLOCKS, _OUT = 4, 128


def run(quick: bool) -> dict[str, Any]:
    """Kernel maps, forward passes, a training step; rates in GFLOP/s of the pairs that exist."""
    sizes, widths = ((4_000,), (64, 128)) if quick else ((20_000, 50_000), (64, 128, 512))
    results: dict[str, Any] = {"minkowski_engine": _minkowski_version(), "threads": torch.get_num_threads()}
    for size in sizes:
        coords = _room(size)
        result: dict[str, Any] = {"voxels": len(coords)} | _maps(coords)
        for width in widths:
            rounds = 3 if width < 512 else 2
            result[f"hidden_{width}"] = _student(coords, width, rounds, train=width < 512 or size < 50_000)
        results[f"voxels_{size // 1000}k"] = result
    return results


def _room(size: int) -> torch.Tensor:
    """(V, 3) voxels of a furnished room with noisy surfaces, in key order."""
    sys.path.insert(0, str(BENCH))
    from _room import furnished_room

    from geopurify_core.sparse import voxel_keys

    coords = torch.tensor(furnished_room(size, channels=4).coords)
    return coords[torch.argsort(voxel_keys(coords))]


def _maps(coords: torch.Tensor) -> dict[str, Any]:
    """Checking and sorting coordinates given in no order, and finding all neighbours; compiled, and in torch alone."""
    from geopurify_core.sparse import CoordinateMap, kernel_map

    shuffled = coords[torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))]
    result = {"coordinates_ms": 1e3 * _best(lambda: CoordinateMap(shuffled), 5)}
    have = kernel_map.HAVE_NUMBA
    for name, used in (("kernel_map_ms", have), ("kernel_map_torch_ms", False)):
        kernel_map.HAVE_NUMBA = used
        try:
            fresh = [CoordinateMap(coords) for _ in range(6)]
            result[name] = 1e3 * _best(lambda left=fresh: left.pop().kernel_map(3), 6)
        finally:
            kernel_map.HAVE_NUMBA = have
    pairs = CoordinateMap(coords).kernel_map(3)
    neighbours = {"neighbours_of_27": pairs.num_pairs / len(coords), "kernel_map_megabytes": pairs.nbytes / 1e6}
    return result | neighbours


def _student(coords: torch.Tensor, width: int, rounds: int, train: bool) -> dict[str, Any]:
    """Ours and MinkowskiEngine's in turns; each figure is the best of its rounds."""
    from geopurify_core.purification.student.network import StudentAffinityNetwork
    from geopurify_core.sparse import CoordinateMap, SparseTensor

    torch.manual_seed(0)
    x = SparseTensor(torch.randn(len(coords), width + 6), CoordinateMap(coords))
    names = ["torch"] + (["minkowski"] if _minkowski_version() else [])
    networks = {name: StudentAffinityNetwork(width + 6, width, _OUT, _BLOCKS, engine=name) for name in names}
    for network in networks.values():
        network.load_state_dict(networks["torch"].state_dict())
    pairs = x.coordinates.kernel_map(3).num_pairs
    gflop = 2e-9 * (pairs * width * (width + 6 + 2 * _BLOCKS * width) + len(coords) * width * _OUT)
    with PeakMemory() as memory:
        _forward(networks["torch"], x)
    result: dict[str, Any] = {
        "forward_gflop": gflop,
        "forward_peak_extra_megabytes": memory.megabytes,
        "activation_megabytes": 4e-6 * width * len(coords),
    }
    modes: list[tuple[str, float, Callable[[str], Any]]] = [("forward", 1.0, lambda name: _forward(networks[name], x))]
    if train:
        modes.append(("training_step", 3.0, lambda name: _training_step(networks[name], x)))
    for mode, passes, work in modes:
        result |= _in_turns(mode, passes * gflop, work, names, width, rounds)
    return result | _one_thread(x.coordinates, width, names)


def _one_thread(coordinates: Any, width: int, names: list[str]) -> dict[str, float]:
    """One convolution by processor seconds on one thread, which other load on the machine hardly changes."""
    from geopurify_core.sparse import load_engine

    flop = 2.0 * coordinates.kernel_map(3).num_pairs * width * width
    features, rows, weights = (torch.randn(n, width) for n in (len(coordinates), 8192, width))
    seconds: dict[str, list[float]] = {name: [] for name in (*names, "product")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        engines = {name: load_engine(name) for name in names}
        layers = {name: engine.SubmanifoldConv3d(width, width) for name, engine in engines.items()}
        inputs = {name: engine.SparseTensor(features, coordinates) for name, engine in engines.items()}
        with torch.inference_mode():
            for _ in range(3):
                for name in names:
                    seconds[name].append(_cpu_seconds(lambda name=name: layers[name](inputs[name])))
                for _ in range(3):
                    product = _cpu_seconds(lambda: rows @ weights)
                    seconds["product"].append(product * flop / (2.0 * rows.numel() * width))
    finally:
        torch.set_num_threads(threads)
    best = {name: min(values) for name, values in seconds.items()}
    result = {"one_thread_cpu_share_of_product": best["product"] / best["torch"]}
    if "minkowski" in best:
        result["one_thread_cpu_times_minkowski"] = best["minkowski"] / best["torch"]
    return result


def _in_turns(
    mode: str, gflop: float, work: Callable[[str], Any], names: list[str], width: int, rounds: int
) -> dict[str, float]:
    """Seconds, rates and ratios of one kind of work."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    products = []
    for _ in range(rounds):
        for name in names:
            before = _product_rate(width)
            seconds[name].append(_seconds(lambda name=name: work(name)))
            if name == "torch":
                products += [before, _product_rate(width)]
    best = min(seconds["torch"])
    result = {
        f"{mode}_s": best,
        f"{mode}_gflop_per_s": gflop / best,
        f"{mode}_product_gflop_per_s": max(products),
        f"{mode}_share_of_product": gflop / best / max(products),
    }
    if "minkowski" in names:
        theirs = min(seconds["minkowski"])
        result |= {f"{mode}_minkowski_s": theirs, f"{mode}_times_minkowski": theirs / best}
    return result


def _forward(network: Any, x: Any) -> None:
    network.eval()
    with torch.inference_mode():
        network(x)


def _training_step(network: Any, x: Any) -> None:
    network.train().zero_grad()
    network(x).square().mean().backward()


def _product_rate(width: int) -> float:
    """GFLOP/s of the plain product of 8192 rows, over a quarter of a second."""
    rows, weights = torch.randn(8192, width), torch.randn(width, width)
    out, count, started = torch.empty_like(rows), 0, time.perf_counter()
    while time.perf_counter() - started < 0.25:
        torch.mm(rows, weights, out=out)
        count += 1
    return count * 2e-9 * rows.numel() * width / (time.perf_counter() - started)


class PeakMemory:
    """Most resident memory of this process inside the block, beyond what it had at the start."""

    def __enter__(self) -> PeakMemory:
        import psutil

        self._process, self._done = psutil.Process(), threading.Event()
        self._start = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.megabytes = (self._peak - self._start) / 1e6


def _minkowski_version() -> str | None:
    from geopurify_core.errors import NotAvailableError
    from geopurify_core.sparse.minkowski import minkowski_engine

    try:
        return str(minkowski_engine().__version__)
    except NotAvailableError:
        return None


def _best(work: Callable[[], Any], rounds: int) -> float:
    return min(_seconds(work) for _ in range(rounds))


def _cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    import json

    print(json.dumps(run("--quick" in sys.argv), indent=2))
