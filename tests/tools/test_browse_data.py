"""Sheets of samples: which samples, after which transforms, with which objects drawn."""

import browse_data
import numpy as np
import pytest
import torch
from PIL import Image

from detpool.config import Configs, config_folder
from detpool.evaluation.pictures import class_color
from detpool.training.runs import build_data

SMALL = ["data=shapes", "data.train_images=12", "data.val_images=6", "data.size=64", "data.num_workers=0"]


def test_training_samples_are_those_of_the_first_epoch():
    given = [*SMALL, "seed=5", "data.train_transform.hflip=0.5"]
    data = build_data(Configs(config_folder(), "train").compose(given), ["fit"])
    dataset, keys = browse_data._samples(given, "train", 4)
    images = [image for batch, _ in data.train_dataloader() for image in batch]
    for key, image in zip(keys, images, strict=False):
        assert torch.equal(dataset[key][0].as_subclass(torch.Tensor), image)


def test_evaluation_samples_are_spread_over_the_split():
    assert [key.index for key in browse_data._samples(SMALL, "val", 3)[1]] == [0, 2, 4]
    assert [key.index for key in browse_data._samples(SMALL, "test", 99)[1]] == list(range(6))


def test_boxes_labels_and_masks_are_drawn(tmp_path, capsys):
    paths = [tmp_path / "deeper" / name for name in ("boxes.png", "masks.png")]
    for path, masks in zip(paths, ("false", "true"), strict=True):
        browse_data.main([*SMALL, f"data.masks={masks}", "count=1", f"output={path}"])
    assert "1 of 12 samples of the train split" in capsys.readouterr().out
    boxes, filled = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in paths)
    dataset, (key,) = browse_data._samples(SMALL, "train", 1)
    _, target = dataset[key]
    # 64 pixels fill 400, behind a margin of 10 and below a line of text.
    left, top = 10, 10 + 16
    for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
        x1, y1, _, y2 = (edge * 400 / 64 for edge in box)
        side = boxes[top + round(y1) + 2 : top + round(y2) - 2, left + max(0, round(x1))]
        # Labels and other objects may hide parts of it.
        assert (np.abs(side - np.array(class_color(label - 1))).sum(axis=1) == 0).mean() > 0.3
    assert np.abs(boxes - filled).sum() > 0


def test_an_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        browse_data.main(["data=shapes", "data.train_images=2", "count=1", f"output={tmp_path}/file/sheet.png"])
    assert end.value.code == 2
    assert f"error: cannot write {tmp_path}/file/sheet.png: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split=vall"], "split: unknown name 'vall'; did you mean 'val'?"),
        (["count=0"], "count: must be a positive whole number, got '0'"),
        (["output=sheet.pdf"], "output: must be a .png or .jpg file, got 'sheet.pdf'"),
        (["data=shape"], "data=shape does not exist; did you mean 'shapes'"),
        (["data.sise=3"], "data: shapes_datamodule has no argument 'sise'; did you mean 'size'?"),
        (["data=voc"], "data.root is null, and so is data.train_xml"),
        (["data=coco", "data.root=/nowhere"], "/nowhere"),
        (["data.train_images=0"], "data: num_images: got 0, need at least 1"),
    ],
)
def test_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        browse_data.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
