#!/usr/bin/env python
"""Writes the proposals of a trained detector's RPN to a file, for detectors that read proposals (Fast R-CNN).

    python tools/write_proposals.py ckpt_path=logs/.../checkpoints/best.ckpt split=train output=train [top_n=1000]
    python train.py model=fast_rcnn data.train_proposals=train data.val_proposals=val ...

`output` is a folder of three `.npy` files, which training maps into memory once for all processes of a machine, or, if
it ends in `.npz`, a single compressed file, which each process unpacks. Further `key=value` arguments change the config
of the run, as for `eval.py`. The images of `split` (train, val or test) are read by `data.num_workers` processes with
the evaluation transform. Boxes are written in pixels of the image files, best first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from command_line import Parser, one_of, positive_int
from rich.progress import track
from torch.utils.data import DataLoader

from detpool.config import apply_overrides, check, parse_path
from detpool.data.datamodule import collate
from detpool.data.proposals import write_proposals
from detpool.errors import ConfigError, exit_with_message
from detpool.run_config import load_config
from detpool.training import runs
from detpool.training.module import to_unit_range

SPLITS = ("train", "val", "test")


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--ckpt_path", type=parse_path, help=argparse.SUPPRESS)
    parser.add_argument("--split", type=one_of(SPLITS), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=parse_path, help=argparse.SUPPRESS)
    parser.add_argument("--top_n", type=positive_int, default=1000, help=argparse.SUPPRESS)
    options, overrides = parser.parse_with_overrides(argv)
    with exit_with_message():
        if missing := [name for name, value in vars(options).items() if value is None]:
            raise ConfigError(f"no value given for {', '.join(missing)}: pass {' '.join(n + '=...' for n in missing)}")
        if options.output.exists() and not _is_replaceable(options.output):
            raise ConfigError(
                f"output={options.output} exists and holds no proposals; name a new folder, or a file in .npz"
            )
        try:
            options.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output={options.output} cannot be written: {error}") from error
        write(options.ckpt_path, options.split, options.output, options.top_n, overrides)


def _is_replaceable(path: Path) -> bool:
    if path.is_dir():
        return path.suffix != ".npz" and {file.suffix for file in path.iterdir()} <= {".npy"}
    return path.suffix == ".npz"


def write(checkpoint: Path, split: str, output: Path, top_n: int, overrides: Sequence[str]) -> None:
    """Writes the proposals of a checkpoint's RPN for the images of a split.

    Raises:
        ConfigError: If the checkpoint's model has no RPN, or an override does not exist.
        DataError: If data is missing or broken.
    """
    checkpoint = runs.find_checkpoint(checkpoint)
    config = load_config(checkpoint)
    apply_overrides(config, overrides)
    check(config)
    if config.model.get("proposals") is not None:
        raise ConfigError(f"{checkpoint}: its model takes proposals from files and makes none")
    config.model.rpn.post_nms_top_n_test = top_n
    config.model.rpn.pre_nms_top_n_test = max(top_n, config.model.rpn.get("pre_nms_top_n_test", 0))
    # For training images, too, proposals are computed without augmentation.
    config.data.train_transform = config.data.get("eval_transform")
    data = runs.build_data(config)
    module = runs.restore(config, checkpoint)
    dataset = getattr(data, f"{split}_dataset")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = module.model.to(device).eval()
    found = {}
    # One image at a time, because the padding of a batch would change the proposals.
    loader = DataLoader(dataset, batch_size=1, num_workers=data.num_workers, collate_fn=collate)
    for images, (target,) in track(loader, f"proposals of {split}", len(dataset), disable=not sys.stdout.isatty()):
        with torch.inference_mode():
            batch, _ = model.transform([image.to(device) for image in to_unit_range(images)])
            (boxes,), _ = model.rpn(batch, model.backbone(batch.tensors))
        height, width = target["orig_size"]
        input_height, input_width = images[0].shape[-2:]
        scale = boxes.new_tensor([width / input_width, height / input_height]).repeat(2)
        found[int(target["image_id"])] = (boxes * scale).cpu()
    write_proposals(output, found)
    mean = sum(map(len, found.values())) / max(len(found), 1)
    print(f"{output}: {mean:.0f} proposals an image, {len(found)} images of {split}")


if __name__ == "__main__":
    main()
