"""Pictures in TensorBoard while a run trains."""

import io

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detpool.errors import ConfigError
from detpool.training import runs
from detpool.training.picture_callbacks import LogPredictions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")


def test_pictures_of_the_first_images_every_other_epoch(tiny_config, tmp_path):
    options = ["trainer.max_epochs=3", "logger=tensorboard"]
    pictures = ["callbacks=pictures", "callbacks.pictures.every_n_epochs=2", "callbacks.pictures.count=2"]
    runs.train(tiny_config(*options, *pictures, "callbacks.pictures.score_threshold=0", name="pictures"))
    events = EventAccumulator(str(tmp_path / "pictures" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    first = runs.build_data(tiny_config()).val_dataset.image_ids[:2]
    assert sorted(events.Tags()["images"]) == sorted(f"predictions/{image_id}" for image_id in first)
    for tag in events.Tags()["images"]:
        # Eight images in batches of two: epochs 0 and 2 end at steps 4 and 12.
        assert [image.step for image in events.Images(tag)] == [4, 12]
        picture = Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string))
        assert picture.width == 2 * 400 + 3 * 10  # two square halves and margins

    # Looking on changes nothing.
    runs.train(tiny_config(*options, name="plain"))
    plain, watched = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "pictures")
    )
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_no_logger_for_pictures_is_an_error(tiny_config):
    with pytest.raises(ConfigError, match="logger=tensorboard"):
        runs.train(tiny_config("callbacks=pictures"))


@pytest.mark.parametrize("name", ["every_n_epochs", "count", "panel"])
def test_bad_numbers(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        LogPredictions(**{name: 0})
