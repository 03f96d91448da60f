import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    """RGB uint8 (40, 60, 3): red, green, blue and grey quarters, smooth enough to survive JPEG."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = 200, 30, 30
    pixels[:20, 30:] = 30, 200, 30
    pixels[20:, :30] = 30, 30, 200
    pixels[20:, 30:] = 120, 120, 120
    return pixels


@pytest.fixture
def voc(tmp_path, picture):
    """Write a picture and an annotation of 40 x 60 into a VOC layout; gives its root."""

    def write(name, objects, folder=".", image_set="train", size="<width>60</width><height>40</height>"):
        base = tmp_path / folder
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (base / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(base / "JPEGImages" / f"{name}.jpg", quality=95)
        items = "".join(
            f"<object><name>{label}</name>{extra}<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for label, (x1, y1, x2, y2), extra in objects
        )
        xml = f"<annotation><filename>{name}.jpg</filename><size>{size}</size>{items}</annotation>"
        (base / "Annotations" / f"{name}.xml").write_text(xml)
        with (base / "ImageSets" / "Main" / f"{image_set}.txt").open("a") as file:
            file.write(f"{name}\n")
        return tmp_path

    return write


@pytest.fixture
def coco(tmp_path, picture):
    """Write a COCO layout of pictures of 40 x 60, ids 7, 8, ..., and the given annotations; gives its root.

    Further arguments replace top-level keys of the JSON.
    """

    def write(annotations, /, count=2, names=((3, "cat"), (90, "dog")), **changes):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "train").mkdir(exist_ok=True)
        rows = []
        for i in range(7, 7 + count):
            Image.fromarray(picture).save(tmp_path / "train" / f"{i}.png")
            rows.append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 60})
        content = {
            "images": rows,
            "annotations": annotations,
            "categories": [{"id": i, "name": n} for i, n in names],
        }
        (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content | changes))
        return tmp_path

    return write
