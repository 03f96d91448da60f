"""Selection of the images and classes of annotation files that form a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from detpool.data.packed import PackedStrings
from detpool.errors import DataError, did_you_mean, listed

DropOthers = Literal["objects", "images"]


@dataclass(frozen=True)
class Part:
    """One of the two parts into which the images of a data set are split, for training and for validation.

    The names of the image files are sorted by a hash of seed and name, and the first are for training. The parts
    therefore do not depend on the order, ids, objects and classes in the annotations, on the folder of the data set, or
    on the run's seed, processes and workers, and images that are added later move few others to the other part. Images
    with the same file name are in the same part.

    Args:
        fraction: fraction of names to train on, between 0 and 1; rounded, with at least one name in each part.
        training: whether this is the training part.
        seed: seed of the order.

    Raises:
        ValueError: If ``fraction`` is not between 0 and 1.
    """

    fraction: float
    training: bool
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"data.split={self.fraction}: need the fraction of images to train on, between 0 and 1")

    def __str__(self) -> str:
        return "training part" if self.training else "validation part"

    def find(self, source: str, names: PackedStrings) -> Tensor:
        """Returns which images are in this part: bool (n,).

        Args:
            source: name of the data set in messages.
            names: names of the n image files.

        Raises:
            DataError: If there are fewer than two different names.
        """
        images = list(names)
        order = sorted(set(images), key=lambda name: (hashlib.sha256(f"{self.seed} {name}".encode()).digest(), name))
        if len(order) < 2:
            raise DataError(f"{source}: has {len(order)} images, data.split={self.fraction} needs at least two")
        for_training = set(order[: min(max(round(self.fraction * len(order)), 1), len(order) - 1)])
        return torch.tensor([(name in for_training) == self.training for name in images])


def split_in_two(fraction: float | None, seed: int) -> tuple[Part | None, Part | None]:
    """Returns the training and the validation part; None for both if ``fraction`` is None."""
    if fraction is None:
        return None, None
    return Part(fraction, True, seed), Part(fraction, False, seed)


def check_classes(classes: Sequence[str] | None, drop_others: str) -> None:
    """Checks the selection of classes as far as it does not depend on a file.

    Raises:
        ValueError: If ``classes`` is empty or contains a name twice, ``drop_others`` is unknown, or it is ``images``
            without ``classes``.
    """
    if drop_others not in get_args(DropOthers):
        raise ValueError(f"data.drop_others={drop_others}: choose from {', '.join(get_args(DropOthers))}")
    if classes is None and drop_others == "images":
        raise ValueError("data.drop_others=images: needs data.classes, the classes to keep")
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise ValueError(f"data.classes={list(classes)}: need at least one class, and each once; null keeps all")


def choose_classes(
    source: str, class_names: Sequence[str], category_ids: Sequence[int], classes: Sequence[str] | None
) -> tuple[list[str], list[int], Tensor]:
    """Returns names and ids of the classes to keep, in the order of `classes` (None: all), and their new labels.

    Returns:
        The names, the ids, and int64 (number of old classes + 1,): the new label for each old one, 0 if left out.

    Raises:
        DataError: If one of ``classes`` is not in ``class_names``.
    """
    for name in classes or ():
        if name not in class_names:
            near = did_you_mean(name, class_names)
            rest = "" if "choose from" in near else f" (its classes are {listed(class_names)})"
            raise DataError(f"{source}: has no class {name!r}, which data.classes names{near}{rest}")
    kept = [class_names.index(name) for name in (class_names if classes is None else classes)]
    new = torch.zeros(len(class_names) + 1, dtype=torch.int64)
    new[torch.tensor(kept) + 1] = torch.arange(1, len(kept) + 1)
    return [class_names[i] for i in kept], [category_ids[i] for i in kept], new
