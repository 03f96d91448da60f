"""Files of proposals: written, read, checked, and carried along with the image."""

import functools

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


def test_round_trip(tmp_path):
    proposals = {7: torch.rand(3, 4), 2: torch.zeros(0, 4), 5: torch.rand(1, 4)}
    write_proposals(tmp_path / "deep" / "p.npz", proposals)
    found = read_proposals(tmp_path / "deep" / "p.npz", [2, 7])
    assert list(found) == [2, 7]
    assert torch.equal(found[7], proposals[7])
    assert found[2].shape == (0, 4)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["p.npz"]


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
    with pytest.raises(DataError, match=r"nothing\.npz does not exist"):
        read_proposals(tmp_path / "nothing.npz", [])
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(DataError, match=r"text\.npz: not a file of proposals"):
        read_proposals(tmp_path / "text.npz", [])
    np.savez(tmp_path / "other.npz", boxes=np.zeros((2, 4)))
    with pytest.raises(DataError, match=r"other\.npz: not a file of proposals .*image_ids"):
        read_proposals(tmp_path / "other.npz", [])
    np.savez(tmp_path / "counts.npz", image_ids=[1], counts=[3], boxes=np.zeros((2, 4)))
    with pytest.raises(DataError, match=r"counts\.npz: .* got \(1,\), \(1,\) \(sum 3\) and \(2, 4\)"):
        read_proposals(tmp_path / "counts.npz", [])
    write_proposals(tmp_path / "nan.npz", {1: torch.full((1, 4), float("nan"))})
    with pytest.raises(DataError, match=r"nan\.npz: boxes hold NaN"):
        read_proposals(tmp_path / "nan.npz", [1])
    write_proposals(tmp_path / "few.npz", {1: torch.zeros(1, 4)})
    with pytest.raises(
        DataError, match=r"no proposals for 6 of the 7 images of the data set: 2, 3, 4, 5, 6 and 1 more"
    ):
        read_proposals(tmp_path / "few.npz", range(1, 8))
