"""Which images and which classes of annotation files make a data set."""

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
    """One of the two parts that the images of a data set are split into, for training and for validation.

    A hash of the seed and the name of each image's file puts the names in an order, of which the first are for
    training. So the parts are the same whatever the order, the ids, the objects and the classes in the annotations,
    the folder that the data set lies in, and the run's seed, processes and workers; and images that are added later
    move few others from one part to the other. Images of one name are in one part.

    Args:
        fraction: of names to train on, between 0 and 1; rounded to whole images, at least one in each part.
        training: whether this is the part to train on.
        seed: of the order.

    Raises:
        ValueError: ``fraction`` is not between 0 and 1.
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
        """Which of the images, given the names of their files, are in this part: bool (n,).

        Raises:
            DataError: there are fewer than two names.
        """
        images = list(names)
        order = sorted(set(images), key=lambda name: (hashlib.sha256(f"{self.seed} {name}".encode()).digest(), name))
        if len(order) < 2:
            raise DataError(f"{source}: has {len(order)} images, data.split={self.fraction} needs at least two")
        for_training = set(order[: min(max(round(self.fraction * len(order)), 1), len(order) - 1)])
        return torch.tensor([(name in for_training) == self.training for name in images])


def split_in_two(fraction: float | None, seed: int) -> tuple[Part | None, Part | None]:
    """The parts to train on and to validate on; ``fraction`` None: none, each set has files of its own."""
    if fraction is None:
        return None, None
    return Part(fraction, True, seed), Part(fraction, False, seed)


def check_classes(classes: Sequence[str] | None, drop_others: str) -> None:
    """Checks what does not depend on a file.

    Raises:
        ValueError: ``classes`` is empty or holds a name twice, or ``drop_others`` is not a choice, or has no meaning.
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
    """Names and ids of the classes to keep, as `classes` orders them (None: all), and the new label of each old one.

    Returns:
        The names, the ids, and int64 (number of old classes + 1,): by old label the new one, 0 for what is left out.

    Raises:
        DataError: one of ``classes`` is not in ``class_names``.
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
