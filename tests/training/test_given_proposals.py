"""From a trained RPN to a file, and from the file to Fast R-CNN."""

import pytest
import torch
import write_proposals as tool

from detpool.data.datamodule import DetectionDataModule
from detpool.data.proposals import read_proposals, write_proposals
from detpool.errors import ConfigError
from detpool.run_config import load_config
from detpool.training import runs

FAST = ["model=fast_rcnn", "head_pool.channels=16", "model.roi_heads.batch_size_per_image=16"]


def test_fast_rcnn_trains_on_the_proposals_of_a_trained_rpn(tiny_config, tmp_path, capsys):
    runs.train(tiny_config("trainer.max_epochs=1", "data.train_transform.hflip=1.0", name="rpn"))
    checkpoint = tmp_path / "rpn" / "checkpoints" / "last.ckpt"
    for split, name in (("train", "train"), ("val", "val.npz")):
        tool.main([f"ckpt_path={checkpoint}", f"split={split}", f"output={tmp_path}/{name}", "top_n=30"])
    assert "30 proposals an image, 8 images of train" in capsys.readouterr().out

    # The file's boxes are those of the network on pictures that are not flipped, as evaluation sees them.
    config = load_config(checkpoint)
    module = runs.build_module(config, pretrained=False)
    runs.load_checkpoint(module, checkpoint)
    model = module.model.eval()
    model.rpn._post_nms_top_n["testing"] = 30
    image = runs.build_data(config).train_dataset.load(3)[0].float() / 255
    with torch.no_grad():
        batch, _ = model.transform([image])
        (expected,), _ = model.rpn(batch, model.backbone(batch.tensors))
    torch.testing.assert_close(read_proposals(tmp_path / "train", [4])[4], expected, atol=1e-3, rtol=1e-4)

    files = [f"data.train_proposals={tmp_path}/train", f"data.val_proposals={tmp_path}/val.npz"]
    metrics = runs.train(
        tiny_config(*FAST, *files, "trainer.max_epochs=1", name="fast", without=["model", "head_pool"])
    )
    assert 0 <= metrics["AP"] <= 1
    with pytest.raises(SystemExit):
        tool.main([f"ckpt_path={tmp_path}/fast/checkpoints/last.ckpt", "split=val", f"output={tmp_path}/x.npz"])
    assert "takes proposals from files and makes none" in capsys.readouterr().err


def test_a_batch_without_proposals_says_what_is_missing(tiny_config):
    config = tiny_config(*FAST, without=["model", "head_pool"])
    config.class_names = list("abcdef")
    with pytest.raises(ValueError, match=r"data\.train_proposals and data\.val_proposals name files"):
        runs.build_module(config).model.eval()([torch.rand(3, 64, 64)], [{}])


def test_files_that_are_missing_end_a_run_before_its_first_step(tiny_config, tmp_path):
    write_proposals(tmp_path / "train.npz", {i: torch.zeros(0, 4) for i in range(1, 9)})
    for given, missing in (
        ([], r"data\.train_proposals and data\.val_proposals must"),
        ([f"data.train_proposals={tmp_path}/train.npz"], r"given: data\.val_proposals must"),
    ):
        config = tiny_config(*FAST, *given, without=["model", "head_pool"])
        with pytest.raises(ConfigError, match=missing):
            runs.train(config)
    assert not (tmp_path / "run").exists()


def test_a_test_set_of_its_own_needs_a_file_of_its_own():
    def sets(test=None):
        return DetectionDataModule(lambda: None, lambda: None, test, val_proposals="val.npz")

    assert sets().missing_proposals(["train", "val", "test"]) == ["train_proposals"]
    assert sets(test=lambda: None).missing_proposals(["val", "test"]) == ["test_proposals"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split=val"], "no value given for ckpt_path, output"),
        (["ckpt_path=x", "output=y", "split=vall"], "split: unknown name 'vall'; did you mean 'val'?"),
        (["ckpt_path=x", "output=y", "split=val", "top_n=0"], "top_n: must be a positive whole number, got '0'"),
        (["ckpt_path=x", "output=y", "split=val"], "ckpt_path=x does not exist"),
        (["ckpt_path=x", f"output={__file__}/y", "split=val"], "cannot be written"),
        (["ckpt_path=x", "output=.", "split=val"], "output=. exists and holds no proposals; name a new folder"),
    ],
)
def test_arguments_are_checked(arguments, message, capsys):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err
