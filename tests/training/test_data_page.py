"""The commands of docs/data.md, as they stand there, on exports such as the tools that it names write."""

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detpool.config import check, parse_command_line
from detpool.training import runs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/data.md").read_text().partition("## Published data sets")[0]
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.replace("\\\n", "").splitlines()
]
SMALL = [
    *("data.batch_size=2", "data.num_workers=0", "data.train_transform.min_size=64", "data.eval_transform.min_size=64"),
    *("trainer.max_steps=2", "evaluation.pictures=0"),
]

# Of each export that has splits: the classes, and the images to train on, to validate on and to test on.
SPLITS = {
    "roboflow": (["RBC", "WBC"], ["train/0.jpg", "train/1.jpg", "train/2.jpg"], ["valid/0.jpg"], ["test/0.jpg"]),
    "beside": (["cell", "nucleus"], ["train/0.jpg", "train/1.jpg", "train/2.jpg"], ["valid/0.jpg", "valid/1.jpg"]),
}
# Of each export that the command splits: the classes, all images, and how many of them are to train on.
TOGETHER = {
    "cvat": (["car", "person"], [f"images/{i}.jpg" for i in range(5)], 4),
    "label_studio": (["car", "person"], [f"images/upload/{i}.jpg" for i in range(4)], 3),
    "mine": (["person", "car"], [f"photos/{i}.jpg" for i in (0, 1, 2, 3, 4)], 4),  # 5 has none of these
    "voc": (["cell", "nucleus"], [f"JPEGImages/{i}.jpg" for i in range(5)], 4),
}


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")


def write_json(
    path: Path, count: int, categories: Iterable[dict[str, object]], first: int = 1, prefix: str = ""
) -> None:
    """An annotation file; an object of each category in each image, but for those whose id is less than `first`."""
    rows = [{"id": i, "file_name": f"{prefix}{i}.jpg", "height": 48, "width": 64} for i in range(count)]
    used = [category["id"] for category in categories if isinstance(category["id"], int) and category["id"] >= first]
    objects = [
        {"image_id": i, "category_id": identity, "bbox": [8 * k, 5 + i, 20, 25], "segmentation": [], "iscrowd": 0}
        for i in range(count)
        for k, identity in enumerate(used)
    ]
    numbered = [row | {"id": number} for number, row in enumerate(objects)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": rows, "annotations": numbered, "categories": list(categories)}))


def write_xml(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>5</ymin><xmax>{x + 20}</xmax><ymax>30</ymax>"
            "</bndbox></object>"
            for name, x in (("nucleus", 3), ("cell", 30))
        )
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        text = f"<annotation><folder>x</folder><filename>{i}.jpg</filename>{size}{objects}</annotation>"
        (folder / f"{i}.xml").write_text(text)


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    """A folder that holds one export of each tool."""
    for name, count in (("train", 3), ("valid", 1), ("test", 1)):
        write_images(tmp_path / "roboflow" / name, count)
        group = [{"id": 0, "name": "cells", "supercategory": "none"}]
        classes = [{"id": i, "name": name, "supercategory": "cells"} for i, name in ((1, "RBC"), (2, "WBC"))]
        write_json(tmp_path / "roboflow" / name / "_annotations.coco.json", count, group + classes)

    plain = [{"id": i, "name": name, "supercategory": ""} for i, name in ((1, "car"), (2, "person"))]
    write_images(tmp_path / "cvat/images", 5)
    write_json(tmp_path / "cvat/annotations/instances_default.json", 5, plain)

    write_images(tmp_path / "label_studio/images/upload", 4)
    from_zero = [{"id": i, "name": name} for i, name in enumerate(("car", "person"))]
    write_json(tmp_path / "label_studio/result.json", 4, from_zero, first=0, prefix="images/upload/")

    write_images(tmp_path / "mine/photos", 6)
    write_json(tmp_path / "mine/labels.json", 6, [*plain, {"id": 3, "name": "tree"}])
    content = json.loads((tmp_path / "mine/labels.json").read_text())
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] < 5 or row["category_id"] == 3]
    (tmp_path / "mine/labels.json").write_text(json.dumps(content))

    write_images(tmp_path / "voc/JPEGImages", 5)
    write_xml(tmp_path / "voc/Annotations", 5)
    for name, count in (("train", 3), ("valid", 2)):
        write_images(tmp_path / "beside" / name, count)
        write_xml(tmp_path / "beside" / name, count)
    return tmp_path


def test_the_page_has_a_command_for_each_export() -> None:
    assert len(COMMANDS) == 7
    for export in SPLITS.keys() | TOGETHER.keys():
        assert any(f"={export}" in command for command in COMMANDS), export


@pytest.mark.filterwarnings("ignore:.*left out 1 of 3 categories, 'cells'")
@pytest.mark.parametrize("command", COMMANDS)
def test_an_export_is_trained_on_by_its_command(
    command: str, exports: Path, tiny_arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exports)
    program, *given = shlex.split(command.removeprefix("python "))
    assert program == "train.py"
    tiny = [argument for argument in tiny_arguments if not argument.startswith("data.")]
    line = parse_command_line([*given, *tiny, *SMALL, f"run_dir={exports}/run"], ROOT / "configs", "train")
    config = line.configs.compose(line.overrides)
    check(config, line.configs, line.overrides)
    metrics = runs.train(config)

    assert torch.load(exports / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    export = re.findall(r"=(\w+)", given[1])[0]
    data = runs.build_data(config, ["fit"])
    files = [
        [str(Path(file).relative_to(exports / export)) for file in dataset.image_files]
        for dataset in (data.train_dataset, data.val_dataset, data.test_dataset)
    ]
    if export in SPLITS:
        classes, *parts = SPLITS[export]
        assert files == (parts if len(parts) == 3 else [*parts, parts[-1]])
    else:
        classes, images, training = TOGETHER[export]
        assert sorted(files[0] + files[1]) == images
        assert len(files[0]) == training
        assert files[2] == files[1]
    assert config.class_names == classes
    assert {key.removeprefix("AP/") for key in metrics if key.startswith("AP/")} == set(classes)
