"""What happens between a data set and the worker processes that read it."""

import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from detpool.data.coco import COCODataset, published_files
from detpool.data.packed import PackedStrings
from detpool.data.transforms import detection_transform
from detpool.data.voc import VOCDataset
from detpool.data.voc_files import published_files as published_voc_files
from detpool.errors import DataError

# pycocotools, of numpy 2; shown in tests only.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

OBJECTS = 200


def crowded(coco, images):
    rng = np.random.default_rng(0)
    annotations = [
        {
            "id": i,
            "image_id": 7 + i // OBJECTS,
            "category_id": 3,
            "iscrowd": 0,
            "bbox": rng.uniform(1, 19, 4).round(2).tolist(),
            "segmentation": [rng.uniform(1, 19, 40).round(2).tolist()],
        }
        for i in range(images * OBJECTS)
    ]
    rows = [{"id": 7 + i, "file_name": "7.png", "height": 40, "width": 60} for i in range(images)]
    return COCODataset(*published_files(coco(annotations, count=1, images=rows), "train"), masks=True)


def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


class Reader(Dataset):
    """Reads everything a worker could read of a sample but the picture, and tells the process's private memory."""

    def __init__(self, dataset, touch):
        self.dataset, self.touch = dataset, touch

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        self.touch(self.dataset, index)
        return private_bytes()


def touch_annotations(dataset, index):
    start, end = dataset._ends[index : index + 2].tolist()
    rows = slice(start, end)
    _ = dataset._names[index], dataset._boxes[rows].sum(), dataset._labels[rows].sum(), dataset._areas[rows].sum()
    _ = [dataset._segmentations[i] for i in range(start, end)]


def touch_objects(dataset, index):
    _ = [str(value) for row in dataset[index] for value in row["segmentation"][0]]


def growth(dataset, touch):
    """Private bytes that reading the data set adds to a forked worker: those of the median sample, for each sample.

    It copies pages of the interpreter too, when its garbage collector or an import touches them. These come in a few
    leaps, whereas annotations are copied as they are read.
    """
    loader = DataLoader(Reader(dataset, touch), batch_size=None, num_workers=1, multiprocessing_context="fork")
    return np.median(np.diff(list(loader))) * len(dataset)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_annotations_are_not_copied_into_workers(coco):
    dataset = crowded(coco, images=50)
    size = sum(len(text) for text in map(dataset._segmentations.__getitem__, range(50 * OBJECTS)))
    assert size > 2e6
    assert growth(dataset, touch_annotations) < 0.1 * size
    # The same annotations as objects of Python are copied as they are read: the measurement can fail.
    rows = dataset.ground_truth()["annotations"]
    objects = [rows[i : i + OBJECTS] for i in range(0, len(rows), OBJECTS)]
    assert growth(objects, touch_objects) > size


def test_what_is_sent_to_a_spawned_worker_does_not_grow_with_the_annotations(coco):
    sizes = [len(ForkingPickler.dumps(crowded(coco, images))) for images in (1, 30)]
    assert sizes[1] < sizes[0] + 1000


def test_workers_give_what_the_process_itself_gives(coco):
    dataset = crowded(coco, images=4)
    assert not any(isinstance(value, list) and 7 in value for value in vars(dataset).values())
    assert dataset.image_ids == [7, 8, 9, 10]  # not kept as objects
    dataset.transform = detection_transform(min_size=20)
    spawned = ForkingPickler.loads(ForkingPickler.dumps(dataset))  # all that a spawned worker has of it
    for reader, workers in ((dataset, 1), (spawned, 0)):
        loader = DataLoader(reader, batch_size=None, num_workers=workers)
        for (image, target), expected in zip(loader, map(dataset.__getitem__, range(4)), strict=True):
            assert torch.equal(image, expected[0])
            for key in ("boxes", "labels"):
                assert torch.equal(target[key], expected[1][key])
            assert torch.equal(target["masks"].dense(), expected[1]["masks"].dense())
            assert target["image_id"] == expected[1]["image_id"]


def test_errors_cross_from_workers_as_themselves(voc):
    root = voc("a", [("cat", (1, 1, 20, 20), "")])
    path = root / "JPEGImages/a.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    loader = DataLoader(VOCDataset(published_voc_files(root)), batch_size=None, num_workers=1)
    with pytest.raises(DataError, match=f"{path}: the image cannot be decoded, it may be truncated"):
        next(iter(loader))


def test_packed_strings():
    strings = ["a.jpg", "", "größe/日本.png", "x" * 1000]
    packed = PackedStrings.pack(iter(strings))
    assert [packed[i] for i in range(len(packed))] == strings
    assert len(PackedStrings.pack([])) == 0
    assert PackedStrings.pack([""])[0] == ""
