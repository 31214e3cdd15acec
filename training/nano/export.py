"""From a training checkpoint to the two files ``nano`` loads: half-precision weights and their metadata.

``python -m training.nano.export out/nano/run --views out/nano/validation --real DATA`` also scores them and writes the
scores into the metadata; ``--install`` puts the files where the package looks for them.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from geopurify_core.vision.nano import WEIGHTS, NanoBackbone
from geopurify_core.vision.nano_net import NanoNet, count_parameters, deployable
from geopurify_core.vision.text import SentenceEncoder
from training.nano.run import load_checkpoint


def export(net: NanoNet, training: dict[str, Any], folder: Path) -> Path:
    """Write ``nano.safetensors`` (normalisation folded in, float16) and ``nano.json``; the path of the former.

    Args:
        net: The trained network.
        training: What to remember of how it came about.
        folder: Is made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folded = deployable(copy.deepcopy(net))
    state = {name: value.to(torch.float16).contiguous() for name, value in folded.state_dict().items()}
    path = folder / "nano.safetensors"
    path.write_bytes(save(state))
    data = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": count_parameters(folded),
        "text_fingerprint": SentenceEncoder().text_fingerprint,
        "licence": "Apache-2.0",
        "training": training,
    }
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def from_checkpoint(folder: Path) -> Path:
    """Export the averaged weights of the checkpoint in a run's folder, finished or not."""
    state = load_checkpoint(folder)
    net = NanoNet()
    net.load_state_dict(state["average"])
    return export(net, {**state["recipe"], "steps_done": state["step"]}, folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with checkpoint.pt")
    parser.add_argument("--views", type=Path, default=Path("out/nano/validation"))
    parser.add_argument("--real", type=Path, default=None, help="folder with labelled real pictures")
    parser.add_argument("--install", action="store_true")
    arguments = parser.parse_args()
    path = from_checkpoint(arguments.run)
    from training.nano.eval import scores, validation_views

    result = scores(NanoBackbone(path), validation_views(arguments.views), arguments.real)
    description = path.with_suffix(".json")
    data = {**json.loads(description.read_text(encoding="utf-8")), "scores": result}
    description.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    if arguments.install:
        WEIGHTS.parent.mkdir(exist_ok=True)
        for file in (path, description):
            shutil.copyfile(file, WEIGHTS.with_suffix(file.suffix))


if __name__ == "__main__":
    main()
