"""Changes of a valid COCO file, and of a VOC folder: each is read right or refused with one message.

What is read is trained on for a step and evaluated with both libraries; it is compared with what a parser of the test's
own finds in the changed file.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from mutations import mutate_bytes, mutate_json, mutate_text, mutate_xml
from PIL import Image
from pycocotools import mask as rle

from detpool.data.coco import COCODataset, published_files
from detpool.data.datamodule import DetectionDataModule
from detpool.data.transforms import detection_transform
from detpool.data.voc import VOCDataset
from detpool.data.voc_files import published_files as published_voc_files
from detpool.errors import DataError
from detpool.evaluation import CocoEvaluator
from detpool.training.module import to_unit_range
from detpool.training.runs import build_module

CASES = 120
SIZES = {7: (32, 48), 8: (40, 32), 1_700_000_000_000_000_009: (36, 36)}  # (height, width) by image id
CLASSES = ["cat", "dog", "crowded"]
CONFIGS = Path(__file__).parents[2] / "configs"
TINY = [
    "backbone.widths=[8,8,8,8]",
    "model.rpn.anchor_sizes=[[8,16,32]]",
    "run_dir=run",
    "model.roi_heads.batch_size_per_image=8",
]
TINY += ["model.rpn.pre_nms_top_n_train=20", "model.rpn.post_nms_top_n_train=8"]


def tiny_step(model: str, *overrides: str) -> Any:
    """A function that takes one training step of one small detector of up to 30 classes; it gives the loss."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", [f"model={model}", *TINY, *overrides])
    config.class_names = [str(i) for i in range(30)]
    torch.manual_seed(0)
    module = build_module(config).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)

    def step(batch: Any) -> float:
        images, targets = batch
        loss = sum(module.model(to_unit_range(images), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def write_images(folder: Path, names: list[str]) -> None:
    rng = np.random.default_rng(0)
    for name, size in zip(names, SIZES.values(), strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)


def coco_text() -> str:
    ids = list(SIZES)

    def rle_of(image_id: int, x: int, y: int, w: int, h: int, as_string: bool) -> dict[str, Any]:
        mask = np.zeros(SIZES[image_id], np.uint8)
        mask[y : y + h, x : x + w] = 1
        if as_string:
            counts = rle.encode(np.asfortranarray(mask))["counts"].decode()
        else:
            flat = mask.ravel(order="F")
            counts = np.diff([0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]).tolist()
        return {"size": list(SIZES[image_id]), "counts": counts}

    polygon = [[3, 2, 30, 2, 30, 20, 3, 20], [8, 20, 20, 20, 14, 28]]
    rows = [
        (ids[0], 1, [3, 2, 27, 26], polygon, 0),
        (ids[0], 2**60, [20.5, 10.25, 20, 12], [[20.5, 10.25, 40.5, 10.25, 40.5, 22.25, 20.5, 22.25]], 0),
        (ids[1], 2, [4, 5, 20, 30], rle_of(ids[1], 4, 5, 20, 30, True), 0),
        (ids[1], 1, [10, 10, 9, 9], rle_of(ids[1], 10, 10, 9, 9, False), 0),
        (ids[2], 2, [0, 0, 36, 18], rle_of(ids[2], 0, 0, 36, 18, True), 1),
        (ids[2], 2**60, [6, 20, 12, 12], rle_of(ids[2], 6, 20, 12, 12, True), 0),
    ]
    annotations = [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        | {"segmentation": segmentation}
        for i, (image, category, box, segmentation, crowd) in enumerate(rows)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in SIZES.items()]
    categories = [{"id": i, "name": name} for i, name in zip((1, 2, 2**60), CLASSES, strict=True)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def voc_texts() -> dict[str, str]:
    """Contents by path below the root."""
    objects = {"im one": [("cat", 4, 3, 30, 28, 0), ("dog", 21, 11, 40, 22, 1)], "im (2)": [("dog", 5, 6, 24, 35, 0)]}
    objects["im.3"] = [("crowded", 1, 1, 36, 18, 0), ("cat", 7, 21, 18, 32, 0)]
    texts = {"ImageSets/Main/train.txt": "im one\nim (2)\nim.3\n"}
    for (name, items), (height, width) in zip(objects.items(), SIZES.values(), strict=True):
        xml = "".join(
            f"  <object>\n    <name>{label}</name>\n    <difficult>{difficult}</difficult>\n"
            f"    <bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>\n  </object>\n"
            for label, x1, y1, x2, y2, difficult in items
        )
        texts[f"Annotations/{name}.xml"] = (
            f"<annotation>\n  <filename>{name}.png</filename>\n  <size><width>{width}</width><height>{height}</height>"
            f"<depth>3</depth></size>\n{xml}</annotation>\n"
        )
    return texts


def damage_image(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    if rng.random() < 0.3:
        path.rename(path.with_suffix(rng.choice([".PNG", ".jpg", ".old"])))
    elif rng.random() < 0.3:
        Image.open(path).rotate(90, expand=True).convert(rng.choice(["L", "P", "1", "LA", "I;16"])).save(path)
    else:
        path.write_bytes(mutate_bytes(path.read_bytes() * 1, rng) if rng.random() < 0.5 else path.read_bytes()[:60])


def run(build: Any, step: Any, backend: Any) -> tuple[Any, int] | str:
    """Reads a data set, trains a step and evaluates its own objects; gives it and how many objects it reported as left
    out, or the message it was refused with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            data = DetectionDataModule(build, build, batch_size=3, num_workers=0)
            data.setup("fit")
            dataset: Any = data.train_dataset
            losses = [step(batch) for batch in data.train_dataloader()]
        except DataError as error:
            return str(error)
    assert np.isfinite(losses).all()
    for iou_type in ("bbox", "segm") if dataset.masks else ("bbox",):
        assert_perfect(dataset, iou_type, backend)
    messages = [str(warning.message) for warning in caught]
    assert len(set(messages)) <= 4, messages
    dropped = {
        int(match[1]) for match in (re.search(r"left out (\d+) of \d+ objects", text) for text in messages) if match
    }
    return dataset, sum(dropped)


def assert_perfect(dataset: Any, iou_type: Any, backend: Any) -> None:
    """The objects of a data set, as detections of it, have AP 1, where they can be found at all."""
    truth = dataset.ground_truth()
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    rows, empty = [], 0
    for annotation in truth["annotations"]:
        row = {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        if iou_type == "segm":
            height, width = sizes[annotation["image_id"]]
            encoded = rle.frPyObjects(annotation["segmentation"], height, width) if not is_string(annotation) else None
            merged = rle.merge(encoded) if isinstance(encoded, list) else encoded or annotation["segmentation"]
            row["segmentation"] = {"size": [height, width], "counts": merged["counts"]}
            empty += not rle.area(merged)
        rows.append(row)
    ap = CocoEvaluator(truth, iou_type=iou_type, backend=backend).evaluate(rows)["AP"]
    counted = [row for row in truth["annotations"] if not row["iscrowd"] and not row["ignore"]]
    assert np.isnan(ap) if not counted else (ap == pytest.approx(1) or (empty and 0 <= ap < 1)), (ap, counted)


def is_string(annotation: Any) -> bool:
    segmentation = annotation["segmentation"]
    return isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)


def shown(box: list[float], size: tuple[int, int]) -> bool:
    """Whether a box (x, y, width, height) shows a part of its image."""
    x, y, w, h = map(float, box)
    return w > 0 and h > 0 and min(x + w, size[1]) > max(x, 0) and min(y + h, size[0]) > max(y, 0)


def objects_of(dataset: Any) -> Counter[Any]:
    truth = dataset.ground_truth()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    files = {image["id"]: image["file_name"] for image in truth["images"]}
    return Counter(
        (files[a["image_id"]], names[a["category_id"]], *map(float, a["bbox"]), a["iscrowd"], a["difficult"])
        for a in truth["annotations"]
    )


def assert_samples_agree(dataset: Any) -> None:
    """What is trained on are the objects of the ground truth that are to be found, within their images."""
    truth = dataset.ground_truth()
    for i, image_id in enumerate(dataset.image_ids):
        _, target = dataset.load(i)
        height, width = target["orig_size"]
        wanted = [
            a["bbox"] for a in truth["annotations"] if a["image_id"] == image_id and not a["iscrowd"] + a["ignore"]
        ]
        corners = [[max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)] for x, y, w, h in wanted]
        assert np.allclose(target["boxes"].numpy().reshape(-1, 4), np.reshape(corners, (-1, 4)), rtol=1e-6)
        if "masks" in target:
            assert len(target["masks"]) == len(wanted)
            assert set(np.unique(target["masks"].dense().numpy())) <= {0, 1}


def assert_is_a_message(message: str, root: Path) -> None:
    assert str(root) in message
    assert "Traceback" not in message
    assert len(message) < 2000
    lines = message.splitlines()
    assert len(lines) == len(set(lines)) <= 2, message  # one for the training set, one for the validation set
    place = r"annotations\[\d+\]|images\[\d+\]|categories\[\d+\]|image -?\d+ \(|\.xml|\.png|line \d+|char \d+|position"
    place += r"|'images'|'annotations'|'categories'|none of its|does not exist|\.txt|not valid JSON|of \[\d+"
    assert re.search(place, message), message


def expected_of_coco(data: bytes) -> tuple[int, Counter[Any]]:
    content = json.loads(data)
    images = {image["id"]: (image["file_name"], (image["height"], image["width"])) for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    kept = Counter()
    for row in content["annotations"]:
        file, size = images[row["image_id"]]
        if shown(row["bbox"], size):
            kept[(file, names[row["category_id"]], *map(float, row["bbox"]), int(row.get("iscrowd", 0)), 0)] += 1
    return len(content["annotations"]), kept


def test_mutations_of_a_coco_file(tmp_path: Path) -> None:
    step = tiny_step("mask_rcnn_c4", "model.mask_channels=8")
    text, outcomes, failures = coco_text(), Counter(), []
    for folder in ("annotations", "train"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "annotations" / "instances_train.json"
    write_images(tmp_path / "train", [f"{i}.png" for i in SIZES])
    for seed in range(CASES):
        data = text.encode() if seed == 0 else mutate_json(text, seed)
        if seed % 20 == 19:
            data = text.encode()
            damage_image(tmp_path / "train" / "7.png", seed)
        path.write_bytes(data)
        start = time.process_time()

        def build() -> COCODataset:
            return COCODataset(
                *published_files(tmp_path, "train"), masks=True, transform=detection_transform(hflip=0.5)
            )

        try:
            found = run(build, step, ("pycocotools", "faster_coco_eval")[seed // 2 % 2])
            if isinstance(found, str):
                assert_is_a_message(found, tmp_path)
            else:
                count, expected = expected_of_coco(data)
                assert objects_of(found[0]) == expected
                assert expected.total() + found[1] == count
                assert_samples_agree(found[0])
        except Exception as error:  # with its seed, among all others
            failures.append(f"seed {seed}: {error!r}")
        else:
            outcomes["refused" if isinstance(found, str) else "read"] += 1
        assert time.process_time() - start < 10, seed
        if seed % 20 == 19:
            shutil.rmtree(tmp_path / "train")
            (tmp_path / "train").mkdir()
            write_images(tmp_path / "train", [f"{i}.png" for i in SIZES])
    assert not failures, "\n".join(failures)
    assert min(outcomes.values()) > CASES / 6, outcomes


def expected_of_voc(root: Path) -> tuple[int, Counter[Any]]:
    text = (root / "ImageSets/Main/train.txt").read_bytes().decode("utf-8-sig")
    count, kept = 0, Counter()
    for line in filter(None, (line.strip() for line in re.split(r"\r\n|\r|\n", text))):
        name = line
        if not (root / "Annotations" / f"{name}.xml").exists():
            name = re.sub(r"\s+(-1|0|1)$", "", line)
        document = minidom.parse(str(root / "Annotations" / f"{name}.xml"))
        for item in document.getElementsByTagName("object"):
            count += 1
            values = {
                child.tagName: "".join(
                    node.data for node in child.childNodes if node.nodeType == node.TEXT_NODE
                ).strip()
                for child in item.getElementsByTagName("*")
            }
            x1, y1, x2, y2 = (float(values[side]) for side in ("xmin", "ymin", "xmax", "ymax"))
            box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
            size = Image.open(next((root / "JPEGImages").glob(f"{name.replace('[', '?')}.*"))).size[::-1]
            if x2 > x1 and y2 > y1 and shown(box, size):
                kept[(values["name"], *box, int(float(values.get("difficult") or 0)))] += 1
    return count, kept


def test_mutations_of_a_voc_folder(tmp_path: Path) -> None:
    step = tiny_step("faster_rcnn_c4")
    texts, outcomes, failures = voc_texts(), Counter(), []
    files = list(texts)
    for seed in range(CASES):
        root = tmp_path / str(seed)
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (root / folder).mkdir(parents=True)
        for file, text in texts.items():
            (root / file).write_text(text)
        write_images(root / "JPEGImages", [f"{Path(file).name.removesuffix('.xml')}.png" for file in files[1:]])
        if seed % 20 == 19:
            damage_image(root / "JPEGImages" / "im.3.png", seed)
        elif seed:
            file = files[0] if seed % 6 == 0 else files[1 + seed % 3]
            change = mutate_text if file == files[0] else mutate_xml
            (root / file).write_bytes(change(texts[file], seed))
        start = time.process_time()

        def build(root: Path = root) -> VOCDataset:
            return VOCDataset(published_voc_files(root), class_names=CLASSES, transform=detection_transform(hflip=0.5))

        try:
            found = run(build, step, ("pycocotools", "faster_coco_eval")[seed // 2 % 2])
            if isinstance(found, str):
                assert_is_a_message(found, root)
            else:
                count, expected = expected_of_voc(root)
                assert Counter((*key[1:6], key[7]) for key in objects_of(found[0]).elements()) == expected
                assert expected.total() + found[1] == count
                assert_samples_agree(found[0])
        except Exception as error:  # with its seed, among all others
            failures.append(f"seed {seed}: {error!r}")
        else:
            outcomes["refused" if isinstance(found, str) else "read"] += 1
        assert time.process_time() - start < 10, seed
        shutil.rmtree(root)
    assert not failures, "\n".join(failures)
    assert min(outcomes.values()) > CASES / 6, outcomes
