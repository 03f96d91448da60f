"""Which images a run's splits share, so that its metrics say how much they are worth."""

from __future__ import annotations

from detpool.data.datamodule import DetectionDataModule
from detpool.data.dataset import DetectionDataset


def split_notes(data: DetectionDataModule, split: str, chosen: bool, trained: bool) -> list[str]:
    """A sentence for each reason why the metrics of a split are better than they would be on new images.

    Args:
        data: the data of the run.
        split: what is evaluated, `val` or `test`.
        chosen: whether the validation set chose the epoch that is evaluated.
        trained: whether the training set may be read.
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
    """How many images of one set are in another, as far as they are files."""
    if one is other:
        return len(one)
    return len(set(one.image_files) & set(other.image_files))
