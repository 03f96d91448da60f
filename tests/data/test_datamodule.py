import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from PIL import Image

from detpool.data.coco import COCODataset, coco_datamodule, published_files
from detpool.data.datamodule import DetectionDataModule
from detpool.data.shapes import ShapesDataset, shapes_datamodule
from detpool.data.transforms import detection_transform
from detpool.errors import DataError

IMAGES = 10


def small_data(**options):
    transform = detection_transform(hflip=0.5, photometric=True)
    defaults = {"train_images": IMAGES, "val_images": 5, "size": 32, "object_size": (0.3, 0.8)}
    defaults |= {"batch_size": 3, "num_workers": 0, "train_transform": transform}
    return shapes_datamodule(**defaults | options)


def fingerprint(batch):
    """Which images a batch holds, and what the transforms made of them."""
    images, targets = batch
    return [
        (t["image_id"], int(image.long().sum()), t["boxes"].tolist()) for image, t in zip(images, targets, strict=True)
    ]


class Recorder(LightningModule):
    """Trains one weight with noise from the global generator, and remembers what it was fed."""

    def __init__(self, stop_at=None, save_to=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_seen, self.val_seen = [], []
        self.stop_at, self.save_to = stop_at, save_to

    def training_step(self, batch, batch_idx):
        self.train_seen.append((self.current_epoch, batch_idx, fingerprint(batch)))
        if (self.current_epoch, batch_idx) == self.stop_at:
            raise KeyboardInterrupt
        return self.weight * batch[0][0].float().mean()

    def validation_step(self, batch, batch_idx):
        self.val_seen.append((self.current_epoch, batch_idx, fingerprint(batch)))

    def on_train_end(self):
        if self.save_to:
            ids = [[image[0] for _, _, batch in seen for image in batch] for seen in (self.train_seen, self.val_seen)]
            torch.save(tuple(ids), self.save_to / f"{self.global_rank}.pt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(folder, data, epochs, model=None, ckpt_path=None, callbacks=(), **options):
    model = model or Recorder()
    trainer = Trainer(
        accelerator="cpu",
        devices=2 if "strategy" in options else 1,
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"num_sanity_val_steps": 0 if "strategy" in options else 1, "use_distributed_sampler": False} | options),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return model


def test_batches():
    data = small_data(masks=True)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(images) for images, _ in batches] == [3, 3, 3, 1]
    assert sorted(t["image_id"] for _, targets in batches for t in targets) == list(range(1, IMAGES + 1))
    images, targets = batches[0]
    assert isinstance(images, list)
    assert isinstance(targets, list)
    for value in [*images, *map(targets[0].get, ("boxes", "labels")), targets[0]["masks"].grid]:
        assert type(value) is torch.Tensor
    assert targets[0]["orig_size"] == (32, 32)
    val_ids = [t["image_id"] for _, targets in data.val_dataloader() for t in targets]
    assert val_ids == [1, 2, 3, 4, 5]
    assert data.test_dataset is data.val_dataset


def test_classes_are_known_before_setup_and_without_the_training_set():
    def fail():
        raise AssertionError("built")

    data = DetectionDataModule(train=fail, val=lambda: ShapesDataset("val", 2, classes=["ring"]))
    assert (data.class_names, data.category_ids) == (["ring"], [1])
    data.setup("validate")
    data.setup("test")


def test_splits_must_have_the_same_classes():
    data = DetectionDataModule(
        train=lambda: ShapesDataset("train", 2, classes=["ring", "star"]),
        val=lambda: ShapesDataset("val", 2, classes=["star", "ring"]),
    )
    with pytest.raises(DataError, match="training set and the validation set name different classes"):
        data.setup("fit")


def test_bad_arguments_are_named():
    for argument in ({"batch_size": 0}, {"eval_batch_size": 0}, {"num_workers": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(argument))}: got"):
            small_data(**argument)


def test_samples_do_not_depend_on_the_number_of_workers_nor_the_global_generator_on_them():
    def epochs(num_workers):
        torch.manual_seed(3)
        data = small_data(num_workers=num_workers)
        loader = data.train_dataloader()
        seen = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            seen.append([fingerprint(batch) for batch in loader])
        list(data.val_dataloader())
        return seen, torch.rand(4).tolist()

    torch.manual_seed(3)
    (first, second), drawn = epochs(0)
    torch.manual_seed(3)
    assert torch.rand(4).tolist() == drawn
    assert first != second
    for num_workers in (1, 2):
        assert epochs(num_workers) == ([first, second], drawn)


def test_workers_outlive_signals_to_all_processes():
    """SLURM announces the end of a job to every process of it; submitit's handler, inherited, would end the workers."""

    def end(number, frame):
        raise SystemExit(1)

    before = signal.signal(signal.SIGUSR2, end)
    try:
        data = small_data(num_workers=1, batch_size=1)
        data.setup("fit")
        batches = iter(data.train_dataloader())
        next(batches)  # two are loaded in advance
        for worker in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                os.kill(worker.pid, number)
        assert len(list(batches)) == len(data.train_dataset) - 1 > 3
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_resumed_runs_see_what_an_uninterrupted_one_sees(tmp_path):
    whole = run(tmp_path, small_data(), epochs=3)
    assert len(whole.train_seen) == 12
    assert len({str(entry[2]) for entry in whole.train_seen}) == 12

    def resumed(folder, step, num_workers, **when):
        """Trains until a checkpoint is written, and goes on from it."""
        stop_at, epochs = when.pop("stop_at", None), when.pop("epochs")
        data = functools.partial(small_data, num_workers=num_workers)
        callback = ModelCheckpoint(tmp_path / folder, **when)
        with pytest.raises((KeyboardInterrupt, SystemExit)) if stop_at else contextlib.nullcontext():
            run(tmp_path, data(), epochs, Recorder(stop_at), callbacks=[callback])
        (path,) = (tmp_path / folder).glob("*.ckpt")
        rest = run(tmp_path, data(), 3, ckpt_path=path)
        assert rest.train_seen == whole.train_seen[step:]
        assert rest.weight == whole.weight
        # Validation sees the same images in every epoch and run.
        assert all(seen[2] == whole.val_seen[0][2] for seen in rest.val_seen if seen[1] == 0)

    resumed("after training", 4, 0, epochs=1, save_on_train_epoch_end=True)
    resumed("after validation", 4, 2, epochs=1, save_on_train_epoch_end=False)
    # In the third step of the second epoch, as by Ctrl-C, and between two steps.
    for num_workers in (0, 2):
        stopped = {"filename": "stopped", "stop_at": (1, 2), "save_on_exception": True}
        resumed(f"amid {num_workers}", 6, num_workers, epochs=3, **stopped)
    resumed("between", 6, 2, epochs=2, every_n_train_steps=6)


def test_a_run_with_grouped_orientations_resumes_within_an_epoch(tmp_path, coco):
    tall = (8, 9, 13, 14, 15)
    rows = [{"id": i, "image_id": i, "category_id": 3, "bbox": [1, 2, 10, 12]} for i in range(7, 17)]
    sizes = {i: {"height": 60, "width": 40} if i in tall else {"height": 40, "width": 60} for i in range(7, 17)}
    root = coco(rows, count=10, images=[{"id": i, "file_name": f"{i}.png", **size} for i, size in sizes.items()])
    for i in tall:
        Image.new("RGB", (40, 60)).save(root / f"train/{i}.png")

    def data():
        options = {"batch_size": 3, "num_workers": 0, "group_orientations": True}
        return coco_datamodule(root, "train", "train", train_transform=detection_transform(hflip=0.5), **options)

    whole = run(tmp_path, data(), epochs=2)
    assert [len({image[0] in tall for image in seen[2]}) for seen in whole.train_seen] == [1, 1, 2, 1] * 2
    callback = ModelCheckpoint(tmp_path, filename="stopped", save_on_exception=True)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path, data(), 2, Recorder((1, 2)), callbacks=[callback])
    assert run(tmp_path, data(), 2, ckpt_path=tmp_path / "stopped.ckpt").train_seen == whole.train_seen[6:]
    with pytest.raises(ValueError, match="group_orientations: ShapesDataset does not say the sizes"):
        small_data(group_orientations=True).train_dataloader()


def test_lightning_may_replace_the_sampler(tmp_path):
    # `overfit_batches` trains on the same first batches again and again, unshuffled.
    data = small_data()
    model = run(tmp_path, data, epochs=2, overfit_batches=1)
    assert [[image[0] for image in seen[2]] for seen in model.train_seen] == [[1, 2, 3]] * 2
    assert len(list(data.train_dataloader())) == 4  # the loader can be read outside of training


def test_processes_share_the_data_out(tmp_path):
    def seen(data, **options):
        run(tmp_path, data, 1, Recorder(save_to=tmp_path), strategy="ddp_fork", **options)
        return [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    # `use_distributed_sampler` must change nothing: the samplers are sharded already.
    (train_0, val_0), (train_1, val_1) = seen(small_data(), use_distributed_sampler=True)
    assert len(train_0) == len(train_1) == IMAGES / 2
    assert sorted(train_0 + train_1) == list(range(1, IMAGES + 1))
    assert (val_0, val_1) == ([1, 3, 5], [2, 4])
    assert seen(small_data(train_images=1, val_images=1)) == [([1], [1]), ([1], [])]


def from_config(name, **changes):
    with initialize_config_dir(str(Path(__file__).parents[2] / "configs"), version_base=None):
        config = compose(f"data/{name}").data
    OmegaConf.set_struct(config, False)
    return instantiate(OmegaConf.create({"seed": 5, "data": OmegaConf.merge(config, changes)})).data


def test_shapes_config():
    data = from_config("shapes", size=[64, 96], train_images=9)
    assert data.class_names == ["circle", "ring", "square", "triangle", "star", "cross"]
    assert len(data.train_dataset) == 9
    assert data.train_dataset[0][0].shape == (3, 64, 96)
    assert data.seed == 5


def test_voc_config(voc):
    for image_set in ("train", "val"):
        root = voc(image_set, [("cat", (1, 1, 20, 20), "")], "VOC2007", image_set)
    data = from_config("voc", root=str(root), year=[2007], num_workers=0, eval_transform={"min_size": 80})
    assert len(data.class_names) == 20
    assert 480 <= data.train_dataset[0][0].shape[1] <= 800
    images, targets = next(iter(data.test_dataloader()))
    assert images[0].shape == (3, 80, 120)
    assert targets[0]["boxes"].tolist() == [[0, 0, 40, 40]]
    assert from_config("voc", root=str(root), year=2007, class_names=["cow", "cat"]).val_dataset[0][1]["labels"] == 2


def test_coco_config(coco):
    root = coco([{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 20, 20]}])
    fixed = {"min_size": None, "max_size": None, "size": [50, 50], "scale_range": [0.5, 2.0], "photometric": True}
    data = from_config("coco", root=str(root), train_split="train", val_split="train", train_transform=fixed)
    assert data.class_names == ["cat", "dog"]
    assert len(data.train_dataset) == 1
    assert len(data.val_dataset) == 2
    assert data.train_dataset[0][0].shape == (3, 50, 50)


def test_files_must_be_named():
    for name, kind in (("voc", "xml"), ("coco", "json")):
        with pytest.raises(InstantiationException, match=rf"data\.root is null, and so is data\.train_{kind}"):
            from_config(name)


@pytest.fixture
def three_splits(coco):
    """COCO's layout with splits train, val and test of two images each; gives a function that builds the datamodule."""
    root = coco([{"id": i, "image_id": i, "category_id": 3, "bbox": [0, 0, 20, 20]} for i in (7, 8)])
    for split in ("val", "test"):
        shutil.copytree(root / "train", root / split)
        shutil.copy(root / "annotations/instances_train.json", root / f"annotations/instances_{split}.json")
    return lambda test="test": (root, coco_datamodule(root, "train", "val", test, num_workers=0))


def test_every_split_is_read_before_training(three_splits):
    root, data = three_splits("tset")
    with pytest.raises(DataError, match=r"instances_tset.json does not exist: no split 'tset'; did you mean 'test'\?"):
        data.setup("fit")
    data.setup("validate")
    root, data = three_splits()
    (root / "annotations/instances_test.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"instances_test.json: not valid JSON"):
        data.setup("fit")
    # What is wrong with several splits is said at once.
    (root / "annotations/instances_train.json").unlink()
    with pytest.raises(DataError, match=r"(?s)instances_train.json does not exist.*\n.*instances_test.json: not valid"):
        three_splits()[1].setup("fit")


def test_the_first_missing_image_of_each_split_is_found_by_names(three_splits, monkeypatch):
    root, data = three_splits()
    for split, name in (("train", "8.png"), ("val", "7.png"), ("test", "7.png"), ("test", "8.png")):
        (root / split / name).rename(root / split / f"{name}.old")
    with pytest.raises(DataError) as caught:
        data.setup("fit")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for line, (split, name) in zip(lines, (("train", "8.png"), ("val", "7.png"), ("test", "7.png")), strict=True):
        source = root / "annotations" / f"instances_{split}.json"
        assert line == f"{root / split / name}: the image does not exist; {source} names it"
    for stage, split in (("validate", "val"), ("test", "test")):
        with pytest.raises(DataError, match=rf"{split}/7.png: the image does not exist"):
            data.setup(stage)
    for path in root.glob("*/*.old"):
        path.rename(path.with_suffix(""))
    asked, exists = [], os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: asked.append(path) or exists(path))
    data.setup("fit")
    assert asked == []
    # A folder that is missing.
    shutil.rmtree(root / "val")
    with pytest.raises(DataError, match=r"val/7.png: the image does not exist"):
        three_splits()[1].setup("fit")


def test_images_in_folders_below_and_elsewhere(coco, tmp_path):
    root = coco([{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 20, 20]}])
    (root / "train/deep/er").mkdir(parents=True)
    (root / "train/8.png").rename(root / "train/deep/er/8.png")
    images = [{"id": 7, "file_name": str(root / "train/7.png")}, {"id": 8, "file_name": "deep/er/8.png"}]
    coco([], images=[image | {"height": 40, "width": 60} for image in images])
    COCODataset(*published_files(root, "train")).check_images()
    (root / "train/deep/er/8.png").unlink()
    with pytest.raises(DataError, match=r"train/deep/er/8.png: the image does not exist"):
        COCODataset(*published_files(root, "train")).check_images()
    (root / "train/7.png").rename(root / "train/Ka\u0308se.png")  # as macOS writes it
    (root / "train/deep/a.png").touch()
    for name, other in (
        ("a\0b.png", None),
        ("x" * 5000 + ".png", None),
        ("no/such/folder/7.png", None),
        ("Ka\u0308se.png/7.png", None),
        ("K\xe4se.PNG", r"Ka\u0308se.png"),
        (r"deep\a.png", "deep/a.png"),
    ):
        coco([], images=[{"id": 7, "file_name": name, "height": 40, "width": 60}])
        (root / "train/7.png").unlink()
        with pytest.raises(DataError, match="the image does not exist") as caught:
            COCODataset(*published_files(root, "train")).check_images()
        assert ("written otherwise" in str(caught.value)) == (other is not None)
        assert other is None or f"; '{other}' does" in str(caught.value)


def test_images_that_are_looked_at_have_their_annotated_size_and_no_doubtful_note(coco):
    root = coco([{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 20, 20]}])
    for name, orientation in (("7.png", 3), ("8.png", 1)):
        image = Image.new("RGB", (60, 40), (200, 9, 9))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(root / "train" / name, exif=exif)
    with pytest.warns(UserWarning, match=r"1 of the 2 images .* have an EXIF note .* as they are stored: .* is 7.png"):
        COCODataset(*published_files(root, "train")).check_images()
    Image.new("RGB", (61, 40), (200, 9, 9)).save(root / "train/8.png")
    with pytest.raises(DataError, match=r"8.png: is 40 x 61 .* say 40 x 60"):
        COCODataset(*published_files(root, "train")).check_images()


def test_nearly_black_images_are_counted_once(coco):
    root = coco([{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 20, 20]}], count=40)
    for i in range(7, 47, 2):
        Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60)).save(root / "train" / f"{i}.png")
    data = coco_datamodule(root, "train", "train", num_workers=0, drop_empty=False)
    with pytest.warns(UserWarning, match=r"train.json: 8 of the 16 images .* nearly black, .* lowest bits") as caught:
        data.setup("validate")
    assert len(caught) == 1
    assert "the first is 7.png" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("validate")  # said
    (root / "train/7.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"train/7.png: not a readable image"):
        COCODataset(*published_files(root, "train")).check_images()
