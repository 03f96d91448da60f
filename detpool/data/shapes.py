"""Generated data: textured shapes on textured backgrounds, drawn from a seed, with exact boxes and masks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision import tv_tensors

from detpool.data.datamodule import DetectionDataModule
from detpool.data.dataset import DetectionDataset, Sample, Transform
from detpool.data.transforms import check_eval_transform
from detpool.object_masks import ObjectMasks

Array = NDArray[np.float32]
SPLITS = ("train", "val")

# Pictures are computed from uniform random numbers of PCG64 with +, -, *, /, square roots and comparisons, all exactly
# rounded by IEEE 754, and without functions of the C library: a seed gives the same data on every platform. For the
# same reason, scalars are deliberately float or np.float32: numpy 1 and 2 promote mixtures of the two differently.


class _Placed(NamedTuple):
    """A shape, with the window of the picture that it can cover."""

    label: int
    window: tuple[slice, slice]
    distance: Array  # signed distance to the outline in pixels, negative inside
    u: Array  # coordinates in the shape's own frame, in units of its radius
    v: Array
    radius: np.float32  # pixels


class ShapesDataset(DetectionDataset):
    """Generated pictures of filled, textured, overlapping shapes of six classes; nothing is read from disk.

    A mask contains the pixels whose center the shape covers and no later shape hides; a box is the tight box of its
    mask. Later shapes are smaller and leave at least ``min_visible`` of the pixels of every earlier one visible, so
    that everything in a picture is annotated. Shapes may cross the border.

    Args:
        split: ``train`` or ``val``; they have no picture in common.
        num_images: number of pictures; picture i does not depend on it.
        size: side of the pictures in pixels, or (height, width). Everything scales with the shorter side.
        num_objects: (fewest, most) shapes in a picture. If there is no room, there may be fewer, but at least one.
        object_size: (smallest, largest) diameter of a shape as a fraction of the shorter side; small ones are
            more frequent.
        min_visible: fraction of a shape's pixels that stays visible, in [0, 1]; at least one pixel does.
        classes: the classes to draw; default: circle, ring, square, triangle, star, cross.
        masks: whether samples and ground truth contain masks.
        seed: seed of the data, not of the run, so that runs with different seeds are compared on the same data.
        transform: see `DetectionDataset`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        split: str = "train",
        num_images: int = 1000,
        size: int | Sequence[int] = 128,
        num_objects: Sequence[int] = (1, 7),
        object_size: Sequence[float] = (0.14, 0.5),
        min_visible: float = 0.5,
        classes: Sequence[str] | None = None,
        masks: bool = False,
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(transform)
        for name, pair, what in (
            ("size", [size, size] if isinstance(size, int) else size, "[height, width]"),
            ("num_objects", num_objects, "[fewest, most]"),
            ("object_size", object_size, "[smallest, largest]"),
        ):
            if len(pair) != 2:
                raise ValueError(f"{name}: got {list(pair)}, need two numbers, {what}")
        height, width = (size, size) if isinstance(size, int) else size
        names = list(_DISTANCES if classes is None else classes)
        if split not in SPLITS:
            raise ValueError(f"split: got {split!r}, accepted are {', '.join(SPLITS)}")
        if num_images < 1:
            raise ValueError(f"num_images: got {num_images}, need at least 1")
        if min(height, width) < 32:
            raise ValueError(f"size: got {size}, need at least 32 pixels")
        if not 1 <= num_objects[0] <= num_objects[1] <= 255:
            raise ValueError(f"num_objects: got {num_objects}, need [fewest, most] with 1 <= fewest <= most <= 255")
        if not 8 / min(height, width) <= object_size[0] <= object_size[1] <= 1:
            raise ValueError(
                f"object_size: got {object_size} for pictures of {height} x {width}, need [smallest, largest] "
                f"with 8 pixels <= smallest <= largest <= 1, as fractions of the shorter side"
            )
        if not 0 <= min_visible <= 1:
            raise ValueError(f"min_visible: got {min_visible}, need a fraction, 0 to 1")
        if seed < 0:
            raise ValueError(f"seed: got {seed}, need at least 0")
        if not names or any(name not in _DISTANCES for name in names) or len(set(names)) < len(names):
            raise ValueError(f"classes: got {names}, need some, each once, of {', '.join(_DISTANCES)}")
        self.split, self.num_images, self.size = split, num_images, (height, width)
        self.num_objects, self.object_size, self.min_visible = tuple(num_objects), tuple(object_size), min_visible
        self.masks, self.seed = masks, seed
        self.class_names = names
        self.category_ids = list(range(1, len(names) + 1))

    @property
    def image_ids(self) -> list[int]:
        return list(range(1, self.num_images + 1))

    def __len__(self) -> int:
        return self.num_images

    def load(self, index: int) -> Sample:
        shapes, owner = self._arrange(index)
        picture = self._paint(index, shapes)
        masks = _visible_masks(owner, len(shapes))
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(_tight_boxes(masks)), format="XYXY", canvas_size=self.size
            ),
            "labels": torch.tensor([shape.label for shape in shapes]),
            "image_id": index + 1,
            "orig_size": self.size,
        }
        if self.masks:
            target["masks"] = ObjectMasks.from_dense(torch.from_numpy(masks))
        return tv_tensors.Image(torch.from_numpy(picture.transpose(2, 0, 1).copy())), target

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        height, width = self.size
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, image_id in enumerate(self.image_ids):
            name = f"shapes_{self.split}_{image_id:06d}.png"
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            shapes, owner = self._arrange(index)
            masks = _visible_masks(owner, len(shapes))
            for shape, mask, (x1, y1, x2, y2) in zip(shapes, masks, _tight_boxes(masks).tolist(), strict=True):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": shape.label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
                if self.masks:
                    rle = coco_mask.encode(np.asfortranarray(mask))
                    annotation["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
                annotations.append(annotation)
        categories = [{"id": i, "name": n} for i, n in zip(self.category_ids, self.class_names, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, SPLITS.index(self.split), index, purpose]))

    def _arrange(self, index: int) -> tuple[list[_Placed], NDArray[np.uint8]]:
        """Place the shapes; also return the map (height, width) of the visible shape: 1, 2, ..., or 0 for none."""
        rng = self._rng(index, purpose=0)
        fewest, most = self.num_objects
        smallest, largest = (fraction * min(self.size) / 2 for fraction in self.object_size)
        wanted = fewest + int(rng.random() * (most - fewest + 1))
        radii = np.sort(smallest + (largest - smallest) * rng.random(wanted) ** 2)[::-1].astype(np.float32)

        owner = np.zeros(self.size, np.uint8)
        shapes: list[_Placed] = []
        visible = np.zeros(len(radii) + 1, np.int64)  # visible pixels of each shape; `needed` is their minimum
        needed = np.zeros(len(radii) + 1)
        for radius in radii:
            label = 1 + int(rng.random() * len(self.class_names))
            for _ in range(10):
                shape = self._place(label, radius, rng)
                inside = shape.distance < 0
                below = owner[shape.window]
                left = visible - np.bincount(below[inside], minlength=len(visible))
                if (left >= needed)[1:].all():
                    shapes.append(shape)
                    below[inside] = number = len(shapes)
                    visible = left
                    visible[number] = inside.sum()
                    needed[number] = max(visible[number] * self.min_visible, 1)
                    break
        return shapes, owner

    def _place(self, label: int, radius: np.float32, rng: np.random.Generator) -> _Placed:
        height, width = self.size
        margin, reach = 0.6 * float(radius), 1.2 * float(radius) + 1
        turn_x, turn_y = _direction(rng)
        draw_x, draw_y = rng.random(2)
        centre_x = np.float32(margin + (width - 2 * margin) * draw_x)
        centre_y = np.float32(margin + (height - 2 * margin) * draw_y)
        x1, x2 = max(0, int(float(centre_x) - reach)), min(width, int(float(centre_x) + reach) + 1)
        y1, y2 = max(0, int(float(centre_y) - reach)), min(height, int(float(centre_y) + reach) + 1)
        x = (np.arange(x1, x2, dtype=np.float32) + np.float32(0.5) - centre_x) / radius
        y = (np.arange(y1, y2, dtype=np.float32) + np.float32(0.5) - centre_y)[:, None] / radius
        u, v = turn_x * x - turn_y * y, turn_y * x + turn_x * y
        distance = _DISTANCES[self.class_names[label - 1]](u, v) * radius
        return _Placed(label, (slice(y1, y2), slice(x1, x2)), distance, u, v, radius)

    def _paint(self, index: int, shapes: list[_Placed]) -> NDArray[np.uint8]:
        rng = self._rng(index, purpose=1)
        picture = _background(rng, self.size)
        for shape in shapes:
            _cast_shadow(picture, shape)
            colour = _surface(rng, shape)
            cover = _unit(np.float32(0.5) - shape.distance)[..., None]
            view = picture[shape.window]
            view += (colour - view) * cover
        picture += np.float32(0.5)
        return np.minimum(np.maximum(picture, 0), 255).astype(np.uint8)


def shapes_datamodule(
    train_images: int = 1000,
    val_images: int = 200,
    size: int | Sequence[int] = 128,
    num_objects: Sequence[int] = (1, 7),
    object_size: Sequence[float] = (0.14, 0.5),
    classes: Sequence[str] | None = None,
    masks: bool = False,
    data_seed: int = 0,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    **loader: Any,
) -> DetectionDataModule:
    """Builds the datamodule of generated shapes; the validation set is the test set.

    Args:
        train_images, val_images: number of pictures of each split.
        size, num_objects, object_size, classes, masks: see `ShapesDataset`.
        data_seed: ``seed`` of `ShapesDataset`.
        train_transform, eval_transform: transforms of training and evaluation samples.
        loader: ``batch_size``, ``num_workers``, ``seed``, ...: see `DetectionDataModule`.

    Raises:
        ValueError: If ``eval_transform`` flips or crops.
    """
    check_eval_transform(eval_transform)
    build = partial(
        ShapesDataset,
        size=size,
        num_objects=num_objects,
        object_size=object_size,
        classes=classes,
        masks=masks,
        seed=data_seed,
    )
    return DetectionDataModule(
        train=partial(build, split="train", num_images=train_images, transform=train_transform),
        val=partial(build, split="val", num_images=val_images, transform=eval_transform),
        **loader,
    )


def _visible_masks(owner: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    numbers = np.arange(1, count + 1, dtype=np.uint8)[:, None, None]
    return np.equal(owner, numbers).view(np.uint8)


def _tight_boxes(masks: NDArray[np.uint8]) -> Array:
    """Tight XYXY boxes (n, 4) of masks (n, H, W), none of which may be empty."""
    columns, rows = masks.max(1), masks.max(2)
    x1, y1 = columns.argmax(1), rows.argmax(1)
    x2 = columns.shape[1] - columns[:, ::-1].argmax(1)
    y2 = rows.shape[1] - rows[:, ::-1].argmax(1)
    return np.stack([x1, y1, x2, y2], 1).astype(np.float32)


# --- Classes: signed distance of points (u, v), v pointing down, in units of the radius. The constants are chosen so
# that the boxes of all classes have about the same size.


def _normals(count: int) -> list[tuple[np.float32, np.float32]]:
    """Evenly spaced unit vectors, rounded so that platforms whose sine differs in the last bit agree."""
    angles = [2 * np.pi * k / count for k in range(count)]
    return [(np.float32(round(np.sin(a), 6)), np.float32(round(np.cos(a), 6))) for a in angles]


_TRIANGLE, _STAR = _normals(3), _normals(5)


def _circle(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v) - np.float32(0.9)


def _ring(u: Array, v: Array) -> Array:
    return abs(np.sqrt(u * u + v * v) - np.float32(0.7)) - np.float32(0.2)


def _square(u: Array, v: Array) -> Array:
    return np.maximum(abs(u), abs(v)) - np.float32(0.75)


def _triangle(u: Array, v: Array) -> Array:
    a, b, c = (x * u + y * v for x, y in _TRIANGLE)
    return np.maximum(np.maximum(a, b), c) - np.float32(0.55)


def _star(u: Array, v: Array) -> Array:
    # A five-pointed star is the set of points on the inner side of at least four of five lines.
    first = second = np.full_like(u, -np.inf)
    for x, y in _STAR:
        side = x * u + y * v
        second = np.maximum(second, np.minimum(first, side))
        first = np.maximum(first, side)
    return second - np.float32(0.35)


def _cross(u: Array, v: Array) -> Array:
    u, v = abs(u), abs(v)
    return np.maximum(np.maximum(u, v) - np.float32(0.95), np.minimum(u, v) - np.float32(0.32))


_DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}


# --- Paint: colors are float32 (..., 3), 0 to 255.


def _direction(rng: np.random.Generator) -> tuple[np.float32, np.float32]:
    """A random unit vector."""
    while True:
        x, y = 2 * rng.random(2) - 1
        square = x * x + y * y
        if 0.01 < square <= 1:
            length = np.sqrt(square)
            return np.float32(x / length), np.float32(y / length)


def _unit(values: Array) -> Array:
    """Clamp to 0 .. 1; on small arrays, `np.clip` takes longer than these two calls."""
    return np.minimum(np.maximum(values, np.float32(0)), np.float32(1))


_HUES = np.array([0, 4, 2], np.float32)


def _vivid(rng: np.random.Generator) -> Array:
    """A random color of any hue, fairly saturated, neither black nor white."""
    hue, saturation, value = rng.random(3, np.float32)
    turn = np.float32(6) * hue + _HUES
    turn -= np.float32(6) * (turn >= 6)
    grey = np.float32(1) - _unit(abs(turn - np.float32(3)) - np.float32(1))
    saturation = np.float32(0.65) + np.float32(0.35) * saturation
    value = np.float32(140) + np.float32(115) * value
    return value * (np.float32(1) - saturation * grey)


def _noise(rng: np.random.Generator, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    return np.frombuffer(rng.bytes(height * width * channels), np.uint8).reshape(height, width, channels)


def _clouds(rng: np.random.Generator, size: tuple[int, int], cell: float, channels: int) -> Array:
    """Smooth noise (height, width, channels) of mean 0 and range 255, with features about `cell` pixels wide."""
    height, width = size
    noise = _noise(rng, int(height / cell) + 2, int(width / cell) + 2, channels)
    image = Image.fromarray(noise if channels > 1 else noise[..., 0]).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32).reshape(height, width, channels) - np.float32(127.5)


def _background(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    unit = min(size) / 128
    base = (110 + 80 * (rng.random() - 0.5) + 60 * (rng.random(3) - 0.5)).astype(np.float32)
    light = _clouds(rng, size, 6 * unit, 1) * np.float32(0.2)
    light += (_noise(rng, *size, 1).astype(np.float32) - np.float32(127.5)) * np.float32(0.1)
    return _clouds(rng, size, 40 * unit, 3) * np.float32(0.3) + (base + light)


def _cast_shadow(picture: Array, shape: _Placed) -> None:
    """Softly darken the picture to the right of and below the shape."""
    shift = max(1, int(0.12 * float(shape.radius)))
    distance = shape.distance[:-shift, :-shift, None]
    soft = _unit(np.float32(0.5) - distance / (np.float32(0.25) * shape.radius))
    view = picture[shape.window][shift:, shift:]
    view *= np.float32(1) - np.float32(0.4) * soft


def _wave(x: Array) -> Array:
    """Triangle wave of period 1 between -0.25 and 0.25."""
    return abs(x - np.floor(x) - np.float32(0.5)) - np.float32(0.25)


# Functions of two perpendicular waves, each between -0.25 and 0.25; positive where the second color is used.
_PATTERNS: tuple[Callable[[Array, Array], Array], ...] = (
    lambda a, b: np.full_like(a, -1),  # plain
    lambda a, b: a,  # stripes
    lambda a, b: np.float32(8) * a * b,  # checks
    lambda a, b: np.maximum(a, b),  # dots
    lambda a, b: a + b,  # diamonds
)


def _surface(rng: np.random.Generator, shape: _Placed) -> Array:
    """Color of every pixel of the shape's window: a two-colored pattern, lit from one side, with a dark rim."""
    first, second = _vivid(rng), _vivid(rng)
    second = first + (second - first) * np.float32(0.7)
    # Periods of the pattern per radius, such that one period is at least 6 pixels long.
    waves = np.float32(1) / np.maximum(np.float32(0.45), np.float32(6) / shape.radius)
    phase_u, phase_v = rng.random(2, np.float32)
    a, b = _wave(shape.u * waves + phase_u), _wave(shape.v * waves + phase_v)
    pattern = _PATTERNS[int(rng.random() * len(_PATTERNS))](a, b)
    mix = _unit(np.float32(0.5) + pattern * (shape.radius / waves))
    light_x, light_y = _direction(rng)
    light = np.float32(1) + np.float32(0.25) * (light_x * shape.u + light_y * shape.v)
    rim = np.maximum(np.float32(1.2), np.float32(0.08) * shape.radius)
    light *= np.where(shape.distance > -rim, np.float32(0.6), np.float32(1))
    return (first + (second - first) * mix[..., None]) * light[..., None]
