"""Class activation maps of a detector: their averages are its logits, where they are drawn and what is refused."""

from pathlib import Path

import pytest
import torch
import visualize
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

import detpool.predictor
from detpool.config import Configs
from detpool.training import runs
from detpool.visualization.class_maps import find_class_maps, plot_class_maps

TINY = ["data.train_images=2", "data.val_images=2", "data.size=64", "backbone.widths=[8,8,8,8]"]
TINY += ["model.fpn_channels=8", "head_pool.channels=8", "model.rpn.anchor_sizes=[[8],[16],[32],[48],[64]]"]


def untrained(head: str) -> detpool.predictor.Predictor:
    torch.manual_seed(0)
    config = Configs(Path(__file__).parents[2] / "configs", "train").compose([*TINY, f"head_pool={head}"])
    config.class_names = list(runs.build_data(config).class_names)
    predictor = detpool.predictor.Predictor(config, runs.build_module(config).model, torch.device("cpu"))
    predictor.model.roi_heads.score_thresh = 0.0
    return predictor


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 60, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_maps_average_to_the_logits_of_their_boxes(image: torch.Tensor) -> None:
    predictor = untrained("class_maps")
    seen = {}
    predictor.model.roi_heads.box_predictor.register_forward_hook(lambda *call: seen.update(logits=call[2][0]))
    found = find_class_maps(predictor, image, score=0.0, count=4)
    assert len(found) == 4
    assert all(each.map.shape == (7, 7) for each in found)
    predictor.model.roi_heads.box_predictor(
        predictor.model.roi_heads.box_head(predictor.pool(image, torch.tensor([each.box for each in found])))
    )
    labels = [predictor.class_names.index(each.name) + 1 for each in found]
    expected = seen["logits"][torch.arange(4), labels]
    torch.testing.assert_close(torch.stack([each.map.mean() for each in found]), expected, atol=1e-5, rtol=1e-5)
    panels = plot_class_maps(found, image).axes[:4]
    for panel, each in zip(panels, found, strict=True):
        x1, y1, x2, y2 = each.box
        assert panel.images[1].get_extent() == [x1, x2, y2, y1]


def test_what_has_no_maps_is_refused(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="the run has no class maps: its predictor is FastRCNNPredictor"):
        find_class_maps(untrained("conv_average"), image)
    with pytest.raises(ValueError, match=r"no detection has a score of 1.1 or more: the best has 0\."):
        find_class_maps(untrained("class_maps"), image, score=1.1)


def test_the_command(image: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    to_pil_image(image).save(tmp_path / "a.png")
    monkeypatch.setattr(detpool.predictor, "load", lambda path, *overrides: untrained("class_maps"))
    arguments = ["class_maps", str(tmp_path), "--image", str(tmp_path / "a.png"), "--output", str(tmp_path)]
    visualize.main([*arguments, "--score", "0"])
    header, *rows = (tmp_path / "class_maps.csv").read_text().splitlines()
    assert header == "detection,score,logit,lowest bin,highest bin"
    assert len(rows) == 6
    with Image.open(tmp_path / "class_maps.png") as picture:
        assert picture.width == 1200
    with pytest.raises(SystemExit):
        visualize.main([*arguments, "--score", "2"])
    assert "a.png: no detection has a score of 2 or more" in capsys.readouterr().err
