"""Files of proposals: written, read, checked, and carried along with the image."""

import contextlib
import functools
import pickle

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from detpool.data.datamodule import DetectionDataModule, collate
from detpool.data.proposals import read_proposals, write_proposals
from detpool.data.sampling import SampleKey
from detpool.data.shapes import ShapesDataset
from detpool.data.transforms import detection_transform
from detpool.errors import DataError


def boxes_of(dataset):
    """Proposals that are the objects' own boxes, so that what is right for these is right for them."""
    return {
        identity: dataset.load(i)[1]["boxes"].as_subclass(torch.Tensor) for i, identity in enumerate(dataset.image_ids)
    }


@pytest.mark.parametrize("name", ["p.npz", "p"])
def test_round_trip(tmp_path, name):
    for count in (5, 3, 0):  # over what is there
        proposals = {7: 9 * torch.rand(count, 4).cumsum(1), 2: torch.zeros(0, 4), 5: torch.tensor([[0.0, 0, 8, 9]])}
        write_proposals(tmp_path / "deep" / name, proposals)
        found = read_proposals(tmp_path / "deep" / name, [2, 7])
        for given in (found, pickle.loads(pickle.dumps(found))):
            assert all(torch.equal(given[identity], boxes) for identity, boxes in proposals.items())
        for identity in (1, 6, 8):
            with pytest.raises(KeyError):
                found[identity]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]


def test_boxes_of_a_folder_are_mapped_by_each_process_and_kept_as_they_are(tmp_path):
    write_proposals(tmp_path / "p", {1: torch.arange(40_000.0).reshape(-1, 4)})
    found = read_proposals(tmp_path / "p", [1])
    assert len(pickle.dumps(found)) < 2_000
    found[1][0] = 7
    assert read_proposals(tmp_path / "p", [1])[1][0].tolist() == [0, 1, 2, 3]


def test_a_folder_that_is_not_whole_is_refused(tmp_path, monkeypatch):
    write_proposals(tmp_path / "p", {1: torch.tensor([[1.0, 2, 30, 40]])})

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            write_proposals(tmp_path / "p", {1: torch.tensor([[1.0, 2, 9, 9]])})
    with pytest.raises(DataError, match=r"image_ids\.npy does not exist"):
        read_proposals(tmp_path / "p", [1])
    write_proposals(tmp_path / "p", {1: torch.tensor([[1.0, 2, 30, 40]])})
    boxes = tmp_path / "p/boxes.npy"
    boxes.write_bytes(boxes.read_bytes()[:-1])
    with pytest.raises(DataError, match="p: not a file of proposals"):
        read_proposals(tmp_path / "p", [1])


@pytest.mark.parametrize(
    "arguments",
    [
        {"hflip": 1.0},
        {"size": [70, 90], "hflip": 0.5},
        {"min_size": [50, 60, 80]},
        {"size": [64, 64], "scale_range": [0.5, 2.0]},  # crops and pads
    ],
)
def test_transforms_do_to_proposals_what_they_do_to_objects(tmp_path, arguments):
    dataset = ShapesDataset(num_images=6, size=64, transform=detection_transform(**arguments))
    write_proposals(tmp_path / "p.npz", boxes_of(dataset))
    dataset.attach_proposals(str(tmp_path / "p.npz"))
    for index in range(6):
        image, target = dataset[SampleKey(index, seed=index)]
        assert isinstance(target["proposals"], tv_tensors.BoundingBoxes)
        assert torch.equal(target["proposals"], target["boxes"])
        assert target["proposals"].canvas_size == tuple(image.shape[-2:])
        assert len(target["labels"]) == len(target["boxes"])


def test_proposals_need_no_objects_to_be_kept(tmp_path):
    dataset = ShapesDataset(num_images=1, size=64, transform=detection_transform())
    given = torch.tensor([[1.0, 2, 30, 40], [60, 60, 99, 99], [70, 70, 80, 80], [5, 5, 5.5, 50]])
    write_proposals(tmp_path / "p.npz", {1: given})
    dataset.attach_proposals(str(tmp_path / "p.npz"))
    _, (target,) = collate([dataset[0]])
    # Clamped to the image; what is left of those outside of it, or less than a pixel wide, is dropped.
    assert target["proposals"].tolist() == [[1, 2, 30, 40], [60, 60, 64, 64]]
    assert type(target["proposals"]) is torch.Tensor


def test_datamodule_gives_each_set_its_own(tmp_path):
    build = functools.partial(ShapesDataset, num_images=2, size=64)
    for split, shift in (("train", 0.0), ("val", 1.0)):
        write_proposals(tmp_path / f"{split}.npz", {i: torch.tensor([[shift, 0, 9, 9]]) for i in (1, 2)})
    options = {
        "num_workers": 0,
        "train_proposals": str(tmp_path / "train.npz"),
        "val_proposals": str(tmp_path / "val.npz"),
    }
    data = DetectionDataModule(functools.partial(build, "train"), functools.partial(build, "val"), **options)
    for dataset, shift in ((data.train_dataset, 0), (data.val_dataset, 1), (data.test_dataset, 1)):
        assert dataset[0][1]["proposals"].tolist() == [[shift, 0, 9, 9]]
    with pytest.raises(ValueError, match="test_proposals: the validation set is the test set"):
        DetectionDataModule(build, build, test_proposals="x.npz")


def test_files_that_are_missing_broken_or_of_other_images(tmp_path):
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "other.npz", boxes=np.zeros((2, 4)))
    np.savez(tmp_path / "counts.npz", image_ids=[1], counts=[3], boxes=np.zeros((2, 4)))
    write_proposals(tmp_path / "nan.npz", {1: torch.full((1, 4), float("nan"))})
    write_proposals(tmp_path / "few.npz", {1: torch.zeros(1, 4)})
    for name, image_ids, message in (
        ("nothing", [], "does not exist"),
        ("text", [], ": not a file of proposals"),
        ("other", [], ": not a file of proposals .*image_ids"),
        ("counts", [], r": .* got \(1,\), \(1,\) \(sum 3\) and \(2, 4\)"),
        ("nan", [1], ": boxes hold NaN"),
        ("few", range(1, 8), ".*no proposals for 6 of the 7 images of the data set: 2, 3, 4, 5, 6 and 1 more"),
    ):
        with pytest.raises(DataError, match=rf"{name}\.npz ?{message}"):
            read_proposals(tmp_path / f"{name}.npz", image_ids)


BOXES = [[1, 2, 30, 40], [5, 5, 9, 9], [0, 0, 64, 64]]


def attach(path, **arrays):
    """Two images, of ids 1 and 2, whose file of proposals holds what is given."""
    good = {"image_ids": [1, 2], "counts": [1, 2], "boxes": BOXES}
    np.savez(path, **{key: np.asarray(value) for key, value in (good | arrays).items()})
    dataset = ShapesDataset(num_images=2, size=64)
    dataset.attach_proposals(str(path))
    return [dataset.proposals[identity].tolist() for identity in dataset.image_ids]


def test_numbers_of_other_programs(tmp_path):
    for arrays in (
        {},
        {"counts": [1.0, 2.0]},
        {"image_ids": np.array([1, 2], np.float32), "counts": np.array([1, 2], np.uint8)},
        {"image_ids": np.array([1, 2], np.uint64), "boxes": np.array(BOXES, "i8")},
    ):
        assert attach(tmp_path / "p.npz", **arrays) == [BOXES[:1], BOXES[1:]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"counts": [1.5, 1.5]}, r"counts\[0\] is 1.5, expected an integer"),
        ({"counts": [1, float("nan")]}, r"counts\[1\] is nan, expected an integer"),
        ({"counts": ["1", "2"]}, "counts is an array of <U1, expected integers"),
        ({"counts": [-1, 4]}, r"\(sum 3\)"),
        ({"counts": [2**62, 2**62]}, "counts and boxes must be"),
        ({"image_ids": ["1", "2"]}, "image_ids is an array of <U1, expected integers"),
        ({"image_ids": np.array([1, 2**63], np.uint64)}, r"image_ids\[1\] is 9223372036854775808, expected an integer"),
        ({"image_ids": [True, False]}, "image_ids is an array of bool"),
        ({"image_ids": [2, 2]}, "image_ids holds 2 2 times, expected once"),
        ({"image_ids": [1.0, 1.0]}, "image_ids holds 1 2 times, expected once"),
        ({"boxes": [["1", "2", "3", "4"]] * 3}, "boxes is an array of <U1, expected numbers"),
        ({"boxes": np.zeros((3, 4), complex)}, "boxes is an array of complex128, expected numbers"),
        ({"boxes": [[1, 2, 3, 4], [1, 2, 3, 1e300], [1, 2, 3, 4]]}, r"NaN or infinity, boxes\[1\]"),
        ({"boxes": np.zeros((3, 5))}, r"got \(2,\), \(2,\) and \(3, 5\)"),
        (
            {"boxes": [[1, 2, 30, 40], [5, 5, 9, 9], [50, 40, 14, 14]]},
            r"box 1 of image 2 is \[50.0, 40.0, 14.0, 14.0\], with x2 < x1 or y2 < y1: expected corners",
        ),
        ({"boxes": [[1, 40, 30, 2], [5, 5, 9, 9], [0, 0, 64, 64]]}, "box 0 of image 1 is"),
        ({"boxes": [[0, 0, 0.5, 0.5], [0.1, 0.1, 1, 1], [0, 0, 1, 1]]}, "lie within the first pixel: .* not fractions"),
    ],
)
def test_values_that_mean_nothing(tmp_path, arrays, message):
    with pytest.raises(DataError, match=rf"p\.npz.*{message}"):
        attach(tmp_path / "p.npz", **arrays)


def test_damaged_files(tmp_path):
    path = tmp_path / "p.npz"
    write_proposals(path, {i: torch.rand(50, 4).cumsum(1) * 9 for i in (1, 2)})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    dataset = ShapesDataset(num_images=2, size=64)
    refused = 0
    for i in range(300):
        broken = bytearray(whole[: rng.integers(len(whole))] if i % 2 else whole)
        for place in rng.integers(0, max(len(broken), 1), 3 * bool(broken)):
            broken[place] ^= rng.integers(1, 256)
        path.write_bytes(broken)
        with contextlib.suppress(DataError):
            dataset.attach_proposals(str(path))
            refused -= 1
        refused += 1
    assert refused > 250
