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
    """Put samples, whose sizes may differ, into a list of images and a list of targets of plain tensors."""
    # The wrappers of tv_tensors have done their work, and would slow down every operation of the model.
    images = [image.as_subclass(Tensor) for image, _ in samples]
    return images, [tree_map_only(Tensor, lambda value: value.as_subclass(Tensor), target) for _, target in samples]


class DetectionDataModule(LightningDataModule):
    """Serves batches ``(images, targets)`` of the samples that `docs/design.md` describes, as lists of tensors.

    Under DDP (``torch.distributed`` initialised) training samples are shuffled and shared out equally, evaluation
    samples are shared out so that each is seen once. What an epoch holds depends on ``seed`` and its number alone: not
    on workers, nor on whether the run was resumed, at the end of an epoch or within one.

    Args:
        train: called without arguments to build the training set, when it is first needed.
        val: the same for the validation set.
        test: the same for the test set; None: the validation set is the test set.
        batch_size: training images a step and process.
        eval_batch_size: evaluation images a step and process; None: as ``batch_size``.
        num_workers: loader processes of each loader and process; 0: load in the training process.
        pin_memory: whether to put batches into page-locked memory, for faster copies to a GPU.
        seed: the run's seed.
        train_proposals, val_proposals, test_proposals: files of proposals (`detpool.data.proposals`) of the sets, for
            models that do not make their own. A test set that is the validation set has its proposals.
        group_orientations: whether images of a training batch are all landscape (or square) or all portrait, but for
            those at the end of an epoch: less is padded. Of 56 images of COCO, their shorter sides 800 pixels, 15.5 %
            of batches of 2 are padding, and 6.2 % if they are grouped; 40.5 % and 12.8 % of batches of 16
            (`tools/bench_scale.py --sizes-of`).

    Raises:
        ValueError: an argument is out of range, or `test_proposals` is given without a test set of its own.
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
        self._checked: list[DetectionDataset] = []  # whose images were found
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.pin_memory, self.seed = num_workers, pin_memory, seed
        self.group_orientations = group_orientations
        # A process gets no image of an evaluation set with fewer images than processes.
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
        """How many images the data sets have that were built so far, by split; a test set of its own counts alone."""
        splits = SPLITS if self._build_test else SPLITS[:2]
        return {split: len(vars(self)[name]) for split in splits if (name := f"{split}_dataset") in vars(self)}

    def missing_proposals(self, splits: Iterable[str]) -> list[str]:
        """The arguments that name no file of proposals, of those that splits (train, val, test) would need."""
        own = {"val" if split == "test" and self._build_test is None else split: None for split in splits}
        return [f"{split}_proposals" for split in own if self._proposals[split] is None]

    @property
    def class_names(self) -> list[str]:
        """Names of labels 1, 2, ...; known from the validation set, before training starts."""
        return self.val_dataset.class_names

    @property
    def category_ids(self) -> list[int]:
        """Category ids of labels 1, 2, ... in the ground truth."""
        return self.val_dataset.category_ids

    def setup(self, stage: str) -> None:
        """Build and check the data sets of the stage, so that broken files end the run before any work.

        Fitting takes all of them: what is wrong with the test set would otherwise be said after the training.
        """
        self.check({"fit": SPLITS, "validate": ("val",), "test": ("test",)}.get(stage, ()))

    def check(self, splits: Iterable[str] = SPLITS) -> None:
        """Build the data sets of splits and look for their images (`DetectionDataset.check_images`), each set once.

        Raises:
            DataError: annotations of a split cannot be read, or an image is missing; the message has a line for each
                split, with the first missing image.
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
            # A loader draws a seed for its workers at each start. Drawn from the global generator it would change
            # what the model draws next, and a resumed run starts its loaders at other times.
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
    """Leave signals that a terminal or scheduler sends to all processes to the one that trains.

    A worker that died of them would take the batch with it that the training process needs to come to a step's end.
    """
    for number in (*STOP, *ANNOUNCED):
        signal.signal(number, signal.SIG_IGN)


class _TrainLoader(DataLoader[Sample]):
    """A loader that asks its sampler for nothing before the first batch of an epoch is asked for.

    Lightning starts the first loader of a run before it tells the sampler the epoch that the run resumes at, and
    loaders with workers fetch ahead: those batches would be epoch 0's.

    A run that resumes within an epoch goes on where it stopped: at the first batch Lightning's counter stands at the
    batches that were finished (in every other epoch at 0). `state_dict` and `load_state_dict` tell Lightning so; there
    is nothing to keep in them, and Lightning does not restore them when a schedule has asked it for the number of
    steps before.
    """

    batches_done: Callable[[], int] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: nothing below runs before the first batch is asked for.
        if self.batches_done and self.batch_size and isinstance(self.sampler, TrainSampler):
            self.sampler.skip = self.batches_done() * self.batch_size
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
