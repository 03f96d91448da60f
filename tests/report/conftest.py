"""Run directories as `train.py` leaves them, without training."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # for report.py, a script

CONFIG: dict[str, Any] = {
    "data": {
        "_target_": "detpool.data.shapes.shapes_datamodule",
        "size": 128,
        "classes": None,
        "batch_size": 8,
        "seed": 0,
    },
    "pooler": {
        "_target_": "detpool.poolers.RoIPooler",
        "output_size": 7,
        "operator": {"_target_": "detpool.ops.roi_align", "sampling_ratio": 2, "reduction": "mean"},
    },
    "optim": {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.02}},
    "trainer": {"max_epochs": 3},
    "callbacks": {"best": {"_target_": "detpool.training.callbacks.RunCheckpoint", "monitor": "val/AP"}},
    "task": "demo",
    "seed": 0,
    "ckpt_path": None,
    "evaluation": {"split": "test", "pictures": 8, "max_dets": [1, 10, 100]},
}

ERRORS = {"correct": 120, "classification": 10, "localisation": 20, "both": 5, "duplicate": 5, "background": 30}
ERRORS["missed"] = 50


def change(config: dict[str, Any], settings: dict[str, Any]) -> Any:
    """A copy with some dotted keys set."""
    changed = OmegaConf.create(config)
    for key, value in settings.items():
        OmegaConf.update(changed, key, value, merge=False)
    return OmegaConf.to_container(changed)


def metrics_of(ap: float) -> dict[str, float | None]:
    """Metrics of a plausible detector with this AP; it saw no large object."""
    by_iou = {f"AP@{0.5 + 0.05 * i:.2f}": ap * 1.5 * (1 - (i / 9) ** 3) for i in range(10)}
    return {
        "AP": ap,
        "AP50": by_iou["AP@0.50"],
        "AP75": by_iou["AP@0.75"],
        "APs": 0.8 * ap,
        "APm": 1.1 * ap,
        "APl": None,
        **by_iou,
        "AP/cat": ap,
    }


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run("a", 0.5, seed=1, pooler="roi_pool", revision="1" * 40, **{"data.size": 64})`: a run directory.

    The first argument is its folder below `tmp_path`, the second its AP; `finished=False` leaves out metrics.json,
    `masks` adds metrics of masks to it, and `record` changes its entries.
    """

    def make(
        name: str,
        ap: float = 0.5,
        *,
        seed: int = 0,
        pooler: str = "roi_align",
        revision: str = "a" * 40,
        finished: bool = True,
        curves: bool = True,
        masks: bool = False,
        record: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = change(CONFIG, {"seed": seed, "data.seed": seed, "run_dir": str(folder)})
        config["callbacks"]["best"]["dirpath"] = str(folder / "checkpoints")
        if pooler != "roi_align":
            config["pooler"]["operator"] = {"_target_": f"detpool.ops.{pooler}"}
        (folder / "config.yaml").write_text(yaml.safe_dump(change(config, settings), sort_keys=False))
        if curves:
            lines = ["epoch,step,train/loss_epoch,train/loss_step,val/AP"]
            for epoch in range(3):
                lines += [f"{epoch},{9 * epoch},,0.7,", f"{epoch},{9 * epoch},,,{ap * (epoch + 1) / 3}"]
                lines += [f"{epoch},{9 * epoch},{math.exp(-epoch)},,"]
            (folder / "csv").mkdir()
            (folder / "csv" / "metrics.csv").write_text("\n".join(lines) + "\n")
        if finished:
            metrics = metrics_of(ap)
            content = {
                "metrics": metrics | ({f"mask_{k}": v and v - 0.1 for k, v in metrics.items()} if masks else {}),
                "errors": {"objects": 200, "detections": 190, **ERRORS},
                "seconds": 120.0,
                "step_seconds": 0.25,
                "peak_memory_bytes": 3 << 20,
                "command": f"train.py pooler={pooler} seed={seed}",
                "git": {"revision": revision, "dirty": False},
                "versions": {"torch": "2.9"},
                "hardware": {"cpu": "x86", "cores": 2, "gpus": []},
                **(record or {}),
            }
            (folder / "metrics.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def sweep(make_run: MakeRun, tmp_path: Path) -> Path:
    """Two poolers with three seeds; precise pooling is 1, 2 and 6 points better."""
    for seed, (base, gain) in enumerate([(0.50, 0.01), (0.52, 0.02), (0.51, 0.06)]):
        make_run(f"logs/{seed}", base, seed=seed, pooler="roi_pool")
        make_run(f"logs/{seed + 3}", base + gain, seed=seed, pooler="pr_roi_pool")
    return tmp_path / "logs"
