"""What the stages of Cascade R-CNN bring: boxes that fit better from stage to stage, and more of them right to IoU 0.9.

`python tests/detection/test_cascade_training.py FOLDER` prints it of the runs FOLDER/faster_rcnn0 to cascade_rcnn2.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from detpool.evaluation.coco import CocoEvaluator
from detpool.evaluation.results import find_results, read_results
from detpool.run_config import load_config
from detpool.training.module import to_unit_range
from detpool.training.runs import build_data, find_checkpoint, restore

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
SMALL = ["data.train_images=600", "trainer.max_epochs=6", "trainer.check_val_every_n_epoch=6", "data.num_workers=0"]
PARTS = 40  # of the images, of which one is left out at a time


def train(run_dir, model, seed):
    line = ["experiment=shapes_cascade_rcnn", f"model={model}", f"seed={seed}", f"hydra.run.dir={run_dir}", *SMALL]
    subprocess.run([sys.executable, str(ROOT / "train.py"), *line], cwd=run_dir.parent, check=True)


def stage_ious(run_dir):
    """Of each image (n, stages + 1) the mean IoU of its proposals of objects, before the first stage and after each.

    Those are the proposals of IoU 0.5 or more with an object, the same ones throughout, each with its nearest object.
    """
    checkpoint = find_checkpoint(run_dir)
    config = load_config(checkpoint)
    model, found = restore(config, checkpoint).model.eval(), []
    with torch.inference_mode():
        for images, targets in build_data(config).val_dataloader():
            for image, target in zip(to_unit_range(images), targets, strict=True):
                batch, _ = model.transform([image])
                maps = model.backbone(batch.tensors)
                proposals, _ = model.rpn(batch, maps)
                boxes = [box for _, _, (box,) in model.roi_heads.run_stages(maps, proposals, batch.image_sizes)]
                boxes.append(model.roi_heads.score_boxes(maps, proposals, batch.image_sizes)[1][:, 1])
                ious = torch.stack([box_iou(box, target["boxes"]).amax(1) for box in boxes])
                if (ious[0] >= 0.5).any():
                    found.append(ious[:, ious[0] >= 0.5].mean(1).tolist())
    return np.array(found)


def difference_of_ap90(run_dirs, others):
    """Mean over pairs of runs of the difference of AP at IoU 0.9, and its standard error over images (jackknife)."""
    data = build_data(load_config(find_checkpoint(run_dirs[0]))).val_dataset
    evaluator, ids = CocoEvaluator(data.ground_truth()), np.array(data.image_ids)
    signed = [(sign, read_results(find_results(run))) for sign, runs in ((1, run_dirs), (-1, others)) for run in runs]

    def mean(images):
        chosen = set(images.tolist())
        found = [(sign, [row for row in rows if row["image_id"] in chosen]) for sign, rows in signed]
        return sum(sign * evaluator.evaluate(rows, chosen)["AP@0.90"] for sign, rows in found) / len(run_dirs)

    left_out = np.array([mean(ids[np.arange(len(ids)) % PARTS != part]) for part in range(PARTS)])
    return mean(ids), np.sqrt((PARTS - 1) * left_out.var())


def measure(folder):
    """Per seed the steps of the mean IoU from stage to stage with standard errors, and the difference of AP@0.90."""
    runs = {model: [folder / f"{model}{seed}" for seed in SEEDS] for model in ("faster_rcnn", "cascade_rcnn")}
    ious = [stage_ious(run) for run in runs["cascade_rcnn"]]
    steps = [(np.diff(each).mean(0), np.diff(each).std(0, ddof=1) / len(each) ** 0.5) for each in ious]
    return [each.mean(0) for each in ious], steps, difference_of_ap90(runs["cascade_rcnn"], runs["faster_rcnn"])


@pytest.mark.slow
def test_boxes_fit_better_from_stage_to_stage(tmp_path):
    for model in ("faster_rcnn", "cascade_rcnn"):
        for seed in SEEDS:
            train(tmp_path / f"{model}{seed}", model, seed)
    means, steps, (difference, error) = measure(tmp_path)
    for step, error_of_step in steps:
        # What the stages are given; what the last one makes of it gains little in so short a training.
        assert (step - 2 * error_of_step > 0)[:-1].all(), (means, steps)
        assert step[-1] > -0.01, (means, steps)
    assert difference - 2 * error > 0, (difference, error)


if __name__ == "__main__":
    for each in measure(Path(sys.argv[1])):
        print(each)
