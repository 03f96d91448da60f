"""The commands of docs/extending.md do what the page says: each trains for two steps with the files of the page."""

import re
import shlex
from pathlib import Path

import bench_ops
import pytest
import torch
import visualize

from detpool import ops
from detpool.config import check, parse_command_line
from detpool.detection import TwoStageDetector
from detpool.training import runs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
TRAININGS = re.findall(r"^python train.py (.*)", PAGE, flags=re.MULTILINE)
SHORT = ["data.train_images=4", "trainer.max_epochs=1", "evaluation.pictures=0"]  # in batches of two


def composed(line, tiny_arguments, folder, run_dir):
    """The config of a command line of the page, made small."""
    words = [word.replace("my_configs", str(folder / "my_configs")) for word in shlex.split(line)]
    absent = ["backbone.widths"] if "backbone=plain" in words else []
    absent += ["head_pool.channels"] if "head_pool=gated" in words else []
    levels = "[[8],[16],[32],[48]]" if "experiment=demo" in words else "[[8],[16],[32],[48],[64]]"
    tiny = [word for word in tiny_arguments if word.partition("=")[0] not in (*absent, "model.rpn.anchor_sizes")]
    command = [*words, *tiny, *SHORT, f"model.rpn.anchor_sizes={levels}", f"run_dir={run_dir}"]
    parsed = parse_command_line(command, ROOT / "configs", "train")
    config = parsed.configs.compose(parsed.overrides)
    check(config, parsed.configs, parsed.overrides)
    return config


@pytest.mark.parametrize("line", sorted(set(TRAININGS)))
def test_two_steps_of_training(line, own_package, tiny_arguments, tmp_path):
    config = composed(line, tiny_arguments, own_package, tmp_path / "run")
    metrics = runs.train(config)
    assert 0 <= metrics["AP"] <= 1
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2


def model_of(line, tiny_arguments, folder, tmp_path) -> TwoStageDetector:
    config = composed(line, tiny_arguments, folder, tmp_path / "run")
    return runs.build_detector(config, 3, pretrained=False)


def line_with(word):
    (line,) = {line for line in TRAININGS if word in line}
    return line


def test_what_is_built_is_what_the_page_defines(own_package, tiny_arguments, tmp_path):
    def parts(word):
        return model_of(line_with(word), tiny_arguments, own_package, tmp_path)

    def count(model, name):
        return sum(type(module).__name__ == name for module in model.modules())

    assert type(parts("backbone=plain").backbone.body).__name__ == "PlainCNN"
    assert type(parts("head_pool=gated").roi_heads.box_head).__name__ == "GatedHead"
    assert count(parts("downsample=min_max"), "MinMaxPool2d") >= 4  # the stem, and between the stages
    operator = parts("pooler=points").roi_heads.box_roi_pool.operator
    assert (operator.func.__name__, operator.keywords) == ("averaged_points", {"points": 3})


def test_the_operator_is_what_it_says(own_package):
    from my_package.operators import averaged_points  # type: ignore[import-not-found]

    features, rois = torch.randn(1, 2, 12, 12), torch.tensor([[0, 10.0, 20, 70, 66]])
    expected = ops.roi_align(features, rois, (3, 2), 1 / 8, sampling_ratio=3, aligned=True)
    torch.testing.assert_close(averaged_points(features, rois, (3, 2), 1 / 8, points=3), expected)


def test_the_tools_take_what_the_page_names(own_package, tmp_path):
    for line in re.findall(r"^python tools/(.*)", PAGE, flags=re.MULTILINE):
        program, *words = shlex.split(line)
        if program == "visualize.py":
            visualize.main([*words, "--output", str(tmp_path)])
        else:
            small = ["--quick", "--workloads", "c4", "--directions", "forward", "--layouts", "contiguous"]
            assert bench_ops.main([*words, *small, "--output", str(tmp_path)]) == 0
