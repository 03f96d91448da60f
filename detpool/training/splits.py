"""Checks which images the splits of a run share, since shared images make its metrics too optimistic."""

from __future__ import annotations

from detpool.data.datamodule import DetectionDataModule
from detpool.data.dataset import DetectionDataset


def split_notes(data: DetectionDataModule, split: str, chosen: bool, trained: bool) -> list[str]:
    """Returns one sentence for each reason why the metrics of a split may be better than on new images.

    Args:
        data: the data of the run.
        split: the evaluated split, `val` or `test`.
        chosen: whether the evaluated epoch was chosen on the validation set.
        trained: whether to compare the splits with the training set too, which is then read if it has not been.
    """
    evaluated = data.val_dataset if split == "val" else data.test_dataset
    notes = []
    if chosen:
        subject = "The metrics are of" if split == "val" else "The test split is"
        shared = _shared(evaluated, data.val_dataset)
        if shared == len(evaluated):
            notes.append(f"{subject} the validation set, which chose the epoch too.")
        elif shared:
            notes.append(f"{shared} of {len(evaluated)} test images are in the validation set, which chose the epoch.")
    if trained:
        sets = {"validation": data.val_dataset}
        if evaluated is not data.val_dataset:
            sets["test"] = evaluated
        for name, dataset in sets.items():
            if shared := _shared(dataset, data.train_dataset):
                notes.append(f"{shared} of {len(dataset)} {name} images are training images.")
    return notes


def _shared(one: DetectionDataset, other: DetectionDataset) -> int:
    """Number of images of one data set that are in another. Different data sets are compared by their image files."""
    if one is other:
        return len(one)
    return len(set(one.image_files) & set(other.image_files))
