"""The Lightning datamodule: data sets, samplers and loaders of a run."""

import signal
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from detpool.data.dataset import DetectionDataset, Sample, Target
from detpool.data.sampling import EvalSampler, TrainSampler
from detpool.distributed import rank_and_world_size
from detpool.errors import DataError
from detpool.signals import ANNOUNCED, STOP

Batch = tuple[list[Tensor], list[Target]]
SPLITS = ("train", "val", "test")


def collate(samples: list[Sample]) -> Batch:
    """Collate samples, whose sizes may differ, into a list of images and a list of targets of plain tensors."""
    # The tv_tensors wrappers are no longer needed, and would slow down every operation of the model.
    images = [image.as_subclass(Tensor) for image, _ in samples]
    return images, [tree_map_only(Tensor, lambda value: value.as_subclass(Tensor), target) for _, target in samples]


class DetectionDataModule(LightningDataModule):
    """Serves batches ``(images, targets)``, two lists, of the samples that `docs/design.md` describes.

    With DDP (``torch.distributed`` initialized), training samples are shuffled and divided equally among the processes,
    and evaluation samples are divided so that each is seen once. The content of an epoch depends only on ``seed`` and
    the epoch number, not on the workers or on whether the run was resumed.

    Args:
        train: function that builds the training set, called when it is first needed.
        val: function that builds the validation set.
        test: function that builds the test set; None: the validation set is the test set.
        batch_size: number of training images per step and process.
        eval_batch_size: number of evaluation images per step and process; None: ``batch_size``.
        num_workers: number of worker processes per loader and process; 0: load in the training process.
        pin_memory: whether to copy batches into page-locked memory, for faster copies to a GPU.
        seed: the run's seed.
        train_proposals, val_proposals, test_proposals: files of proposals (`detpool.data.proposals`), for models that
            do not compute their own. If the validation set is the test set, its proposals are used for both.
        group_orientations: whether the images of a training batch are all landscape (or square) or all portrait, except
            at the end of an epoch. This reduces padding: for 56 images of COCO with shorter sides of 800 pixels, from
            15.5 % to 6.2 % of batches of 2, and from 40.5 % to 12.8 % of batches of 16 (`tools/bench_scale.py
            --sizes-of`).

    Raises:
        ValueError: If an argument is out of range, or `test_proposals` is given without ``test``.
    """

    def __init__(
        self,
        train: Callable[[], DetectionDataset],
        val: Callable[[], DetectionDataset],
        test: Callable[[], DetectionDataset] | None = None,
        batch_size: int = 2,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        pin_memory: bool = False,
        seed: int = 0,
        train_proposals: str | None = None,
        val_proposals: str | None = None,
        test_proposals: str | None = None,
        group_orientations: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, need at least 1")
        if num_workers < 0:
            raise ValueError(f"num_workers: got {num_workers}, need at least 0")
        if test is None and test_proposals is not None:
            raise ValueError("test_proposals: the validation set is the test set, and val_proposals its proposals")
        self._proposals = {"train": train_proposals, "val": val_proposals, "test": test_proposals}
        self._build_train, self._build_val, self._build_test = train, val, test
        self._checked: list[DetectionDataset] = []  # data sets whose image files were found
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.pin_memory, self.seed = num_workers, pin_memory, seed
        self.group_orientations = group_orientations
        # If an evaluation set has fewer images than there are processes, some processes get none.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @cached_property
    def train_dataset(self) -> DetectionDataset:
        return self._with_proposals(self._same_classes(self._build_train(), "training"), "train")

    @cached_property
    def val_dataset(self) -> DetectionDataset:
        return self._with_proposals(self._build_val(), "val")

    @cached_property
    def test_dataset(self) -> DetectionDataset:
        if self._build_test is None:
            return self.val_dataset
        return self._with_proposals(self._same_classes(self._build_test(), "test"), "test")

    def numbers_of_images(self) -> dict[str, int]:
        """Number of images by split, of the data sets built so far; "test" only if it differs from "val"."""
        splits = SPLITS if self._build_test else SPLITS[:2]
        return {split: len(vars(self)[name]) for split in splits if (name := f"{split}_dataset") in vars(self)}

    def missing_proposals(self, splits: Iterable[str]) -> list[str]:
        """Names of the arguments for files of proposals that are None, of those for splits (train, val, test)."""
        own = {"val" if split == "test" and self._build_test is None else split: None for split in splits}
        return [f"{split}_proposals" for split in own if self._proposals[split] is None]

    @property
    def class_names(self) -> list[str]:
        """Names of labels 1, 2, ..., from the validation set."""
        return self.val_dataset.class_names

    @property
    def category_ids(self) -> list[int]:
        """Category ids of labels 1, 2, ... in the ground truth."""
        return self.val_dataset.category_ids

    def setup(self, stage: str) -> None:
        """Build and check the data sets of the stage, so that errors in files are raised before any work.

        For "fit", these are all data sets: errors in the test set would otherwise be raised only after training.
        """
        self.check({"fit": SPLITS, "validate": ("val",), "test": ("test",)}.get(stage, ()))

    def check(self, splits: Iterable[str] = SPLITS) -> None:
        """Build the data sets of splits and check their images (`DetectionDataset.check_images`), once per data set.

        Raises:
            DataError: If annotations of a split cannot be read, or an image is missing. The message has one line per
                split, with its first missing image.
        """
        faults = []
        for split in splits:
            try:
                dataset = getattr(self, f"{split}_dataset")
                if dataset not in self._checked:
                    dataset.check_images()
                    self._checked.append(dataset)
            except DataError as error:
                faults.append(str(error))
        if faults:
            raise DataError("\n".join(dict.fromkeys(faults)))

    def train_dataloader(self) -> "DataLoader[Sample]":
        portrait = None
        if self.group_orientations:
            sizes = self.train_dataset.image_sizes
            if sizes is None:
                kind = type(self.train_dataset).__name__
                raise ValueError(f"group_orientations: {kind} does not say the sizes of its images (image_sizes)")
            portrait = sizes[:, 0] > sizes[:, 1]
        rank, world_size = rank_and_world_size()
        sampler = TrainSampler(self.train_dataset, self.seed, rank, world_size, portrait, self.batch_size)
        loader = _TrainLoader(self.train_dataset, sampler=sampler, **self._loader_options(self.batch_size))
        if self.trainer is not None:
            trainer = self.trainer
            loader.batches_done = lambda: trainer.fit_loop.epoch_loop.batch_idx + 1 if trainer.training else 0
        return loader

    def val_dataloader(self) -> "DataLoader[Sample]":
        return self._eval_loader(self.val_dataset)

    def test_dataloader(self) -> "DataLoader[Sample]":
        return self._eval_loader(self.test_dataset)

    def _eval_loader(self, dataset: DetectionDataset) -> "DataLoader[Sample]":
        sampler = EvalSampler(dataset, self.seed, *rank_and_world_size())
        return DataLoader(dataset, sampler=sampler, **self._loader_options(self.eval_batch_size))

    def _loader_options(self, batch_size: int) -> dict[str, Any]:
        return {
            "batch_size": batch_size,
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": collate,
            "worker_init_fn": _ignore_interrupts,
            # A loader draws a seed for its workers at each start. With the global generator, this would change the
            # model's random numbers, since a resumed run starts its loaders at other times.
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def _with_proposals(self, dataset: DetectionDataset, split: str) -> DetectionDataset:
        path = self._proposals[split]
        if path is not None:
            dataset.attach_proposals(path)
        return dataset

    def _same_classes(self, dataset: DetectionDataset, name: str) -> DetectionDataset:
        ours, theirs = (list(zip(d.category_ids, d.class_names, strict=True)) for d in (dataset, self.val_dataset))
        if ours != theirs:
            alone = {
                f"the {name} set": [pair for pair in ours if pair not in theirs],
                "the validation set": [pair for pair in theirs if pair not in ours],
            }
            what = " and ".join(f"{dict(pairs)} are in {where} alone" for where, pairs in alone.items() if pairs)
            raise DataError(
                f"the {name} set and the validation set name different classes (category id: name): "
                f"{what or f'{dict(ours)} and {dict(theirs)}'}"
            )
        return dataset


def _ignore_interrupts(worker: int) -> None:
    """Ignore signals that a terminal or scheduler sends to all processes; the training process handles them.

    If a worker were killed by such a signal, the training process would lack the batch that it needs to finish a step.
    """
    for number in (*STOP, *ANNOUNCED):
        signal.signal(number, signal.SIG_IGN)


class _TrainLoader(DataLoader[Sample]):
    """A loader that does not use its sampler before the first batch of an epoch is requested.

    Lightning creates the iterator of the first loader before it sets the sampler's epoch for a resumed run. Since
    loaders with workers prefetch, the first batches would be those of epoch 0.

    A run that is resumed within an epoch continues where it stopped: when the first batch is requested, Lightning's
    counter holds the number of finished batches (0 in every other epoch). The methods `state_dict` and
    `load_state_dict` exist only to tell Lightning that the loader can be resumed. They hold no state, because Lightning
    does not restore it if a schedule has requested the number of steps before.
    """

    batches_done: Callable[[], int] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: nothing below runs before the first batch is requested.
        if self.batches_done and self.batch_size and isinstance(self.sampler, TrainSampler):
            self.sampler.skip = self.batches_done() * self.batch_size
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
