"""What all data sets share: the contract of `docs/design.md`, and transforms drawn from a sample's own seed."""

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
    """Base of the data sets: `load` gives samples as the files have them, indexing gives transformed ones.

    Args:
        transform: called with (image, target) of the contract and giving the same; None: samples as loaded.
    """

    class_names: list[str]
    """Name of label 1, 2, ..."""
    category_ids: list[int]
    """Category id in the ground truth of label 1, 2, ..."""

    def __init__(self, transform: Transform | None = None) -> None:
        self.transform = transform
        self.proposals: Proposals | None = None

    def attach_proposals(self, path: str) -> None:
        """Give each sample `proposals`, read from a file of `detpool.data.proposals`.

        Raises:
            DataError: the file cannot be read, lacks an image of the data set, or holds boxes that are none.
        """
        self.proposals = read_proposals(path, self.image_ids)

    @property
    @abstractmethod
    def image_ids(self) -> list[int]:
        """Image id in the ground truth of sample 0, 1, ..."""

    @property
    def image_files(self) -> list[str]:
        """Absolute paths of the images' files; empty where there are none."""
        return []

    @property
    def image_sizes(self) -> Tensor | None:
        """int64 (len, 2), height and width of the images' files in pixels; None where that is not known."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Sample:
        """Sample `index`, 0 .. len - 1, before any transform."""

    @abstractmethod
    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """All objects in COCO's annotation format, in pixels of the image files; built anew at each call."""

    def check_images(self) -> None:
        """Look for the images' files, by their names, so that a run does not end when it first reads one.

        Warns if images that it opens, a few, are nearly black, or may have been annotated as another program turns
        them.

        Raises:
            DataError: a file is missing, the first in the data set's order, or one that was opened is no image or has
                not its annotated size.
        """

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """Give a transformed sample.

        Args:
            key: a `SampleKey`, whose seed the random transforms are drawn from, leaving the global generators as
                they were; or an index alone, with which they draw from the global generators.

        Raises:
            IndexError: the index is not within -len .. len - 1.
            DataError: a file of the sample is missing or broken.
            ValueError: the transform left masks out of step with boxes or image.
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
    """A transform that does not know `ObjectMasks` leaves them as they are."""
    masks, boxes = target.get("masks"), target["boxes"]
    if isinstance(masks, ObjectMasks) and (len(masks), masks.size) != (len(boxes), image.shape[-2:]):
        raise ValueError(
            f"transform: gave {len(boxes)} boxes in an image of {tuple(image.shape[-2:])} but {len(masks)} masks of "
            f"{masks.size}; detpool.data.transforms.SanitizeObjects removes masks with their boxes"
        )
