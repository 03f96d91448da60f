"""The base class of all data sets: the interface of `docs/design.md`, and transforms with a seed for each sample."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from detpool.data.proposals import Proposals, read_proposals
from detpool.data.sampling import SampleKey, seeded_rng
from detpool.object_masks import ObjectMasks

Target = dict[str, Any]
Sample = tuple[Tensor, Target]
Transform = Callable[[Tensor, Target], Sample]


class DetectionDataset(Dataset[Sample]):
    """Base class of the data sets: `load` returns samples as stored in the files, indexing returns transformed samples.

    Args:
        transform: function from (image, target) to (image, target); None: samples are not transformed.
    """

    class_names: list[str]
    """Name of label 1, 2, ..."""
    category_ids: list[int]
    """Category id in the ground truth of label 1, 2, ..."""

    def __init__(self, transform: Transform | None = None) -> None:
        self.transform = transform
        self.proposals: Proposals | None = None

    def attach_proposals(self, path: str) -> None:
        """Read a file of proposals (`detpool.data.proposals`), which are then added to each sample as `proposals`.

        Raises:
            DataError: If the file cannot be read, lacks an image of the data set, or contains invalid boxes.
        """
        self.proposals = read_proposals(path, self.image_ids)

    @property
    @abstractmethod
    def image_ids(self) -> list[int]:
        """Image id in the ground truth of sample 0, 1, ..."""

    @property
    def image_files(self) -> list[str]:
        """Absolute paths of the image files; empty if there are none."""
        return []

    @property
    def image_sizes(self) -> Tensor | None:
        """int64 (len, 2), height and width of the image files in pixels; None if unknown."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Sample:
        """Sample `index`, 0 .. len - 1, before any transform."""

    @abstractmethod
    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """All objects in COCO's annotation format, in pixels of the image files; a new dictionary at each call."""

    def check_images(self) -> None:
        """Check that all image files exist, so that a missing one is found before the run reads it.

        A few images are opened, with warnings if they are nearly black, or if it is ambiguous whether they were
        annotated before or after their EXIF rotation.

        Raises:
            DataError: If a file is missing (the first one is named), or if an opened file is not an image or does not
                have its annotated size.
        """

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """Return a transformed sample.

        Args:
            key: a `SampleKey`, whose seed is used for the random transforms without changing the global generators; or
                an index, in which case transforms use the global generators.

        Raises:
            IndexError: If the index is not within -len .. len - 1.
            DataError: If a file of the sample is missing or broken.
            ValueError: If the masks do not match the boxes or the image after the transform.
        """
        index, seed = (key.index, key.seed) if isinstance(key, SampleKey) else (key, None)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: got {index}, the data set has {len(self)} samples")
        image, target = self.load(index % len(self))
        if self.proposals is not None:
            size = (image.shape[-2], image.shape[-1])
            boxes = self.proposals[target["image_id"]]
            target["proposals"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        if self.transform is None:
            return image, target
        with nullcontext() if seed is None else seeded_rng(seed):
            image, target = self.transform(image, target)
        _check_masks(image, target)
        return image, target


def _check_masks(image: Tensor, target: Target) -> None:
    """Raise ValueError if masks do not match boxes or image: transforms that do not know `ObjectMasks` ignore them."""
    masks, boxes = target.get("masks"), target["boxes"]
    if isinstance(masks, ObjectMasks) and (len(masks), masks.size) != (len(boxes), image.shape[-2:]):
        raise ValueError(
            f"transform: gave {len(boxes)} boxes in an image of {tuple(image.shape[-2:])} but {len(masks)} masks of "
            f"{masks.size}; detpool.data.transforms.SanitizeObjects removes masks with their boxes"
        )
