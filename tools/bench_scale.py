"""Time and memory of annotations, samples, training targets and evaluation at COCO's size, on synthetic data.

    python tools/bench_scale.py                      # 118,287 and 5,000 images; ten minutes and 1.5 GB of disk
    python tools/bench_scale.py --fraction 0.01      # a hundredth of the images, samples and objects
    python tools/bench_scale.py --sizes-of FOLDER    # padding of the images of a data set in COCO's layout

Each row is measured in a process of its own: CPU seconds of all its threads, and how far its memory rose at most above
what it was before; of workers, the private memory that reading every sample's annotations adds. Samples are of shorter
sides from 480 to 800 pixels, those of torchvision of the same files with the same transforms; masks are of the images
with most objects too. Anchors are those of two images of 800 x 1066, masks those of one of 800 x 1333. Padding is the
share of pixels of training batches that are of no image, at shorter sides of 800 and longer ones of 1333 at most. Needs
Linux.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from command_line import Parser, positive
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection.image_list import ImageList
from torchvision.transforms import v2

from detpool.data.coco import COCODataset, published_files
from detpool.data.sampling import TrainSampler
from detpool.data.transforms import detection_transform
from detpool.detection import ProposalNetwork
from detpool.detection.assignment import mask_targets
from detpool.evaluation import DetectionEvaluator, Detections, write_results
from detpool.evaluation.pictures import write_pictures
from detpool.evaluation.results import RESULTS
from detpool.files import write_csv_atomically
from detpool.object_masks import ObjectMasks

TRAIN, VAL = (118_287, 860_001), (5_000, 36_781)  # images and objects of COCO's splits
DETECTIONS = 100  # an image
SIZES = {"landscape": (480, 640), "portrait": (640, 480)}  # (height, width) of the two image files
CATEGORIES = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]


def write_images(folder: Path) -> None:
    """Two JPEG files, which all images of a set are."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{name}.jpg", quality=90)


def make_polygon(box: Sequence[float], points: int, rng: np.random.Generator) -> list[float]:
    """A ragged ellipse within a box (x, y, width, height): x1, y1, x2, y2, ..., to 2 decimals."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = rng.uniform(0.7, 1, points)
    x = box[0] + box[2] / 2 * (1 + radius * np.cos(angles))
    y = box[1] + box[3] / 2 * (1 + radius * np.sin(angles))
    return np.stack([x, y], 1).ravel().round(2).tolist()


def make_boxes(count: int, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Boxes (count, 4), x, y, width and height, of sides from 8 pixels to the image's, small ones more often."""
    sides = np.array([size[1], size[0]])
    extent = np.exp(rng.uniform(np.log(8), np.log(sides), (count, 2)))
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * (sides - extent), extent], 1).round(2)


def make_annotations(images: int, objects: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Annotations in COCO's format: every hundredth object is a crowd in run lengths, the others polygons.

    Args:
        images: their number; half of them are landscape.
        objects: their number in all; a few images have many, as in COCO.
        seed: of the numbers.
    """
    rng = np.random.default_rng(seed)
    names = list(SIZES)
    rows = []
    for i in range(images):
        height, width = SIZES[names[i % 2]]
        rows.append({"id": 5 * i + 9, "file_name": f"{names[i % 2]}.jpg", "height": height, "width": width})
    weights = rng.lognormal(0, 1, images)
    owners = rng.choice(images, objects, p=weights / weights.sum())
    points = rng.lognormal(3, 0.7, objects).clip(4, 300).astype(int)
    annotations = []
    for number, (owner, count) in enumerate(zip(owners.tolist(), points.tolist(), strict=True), 1):
        size = SIZES[names[owner % 2]]
        box = make_boxes(1, size, rng)[0].tolist()
        crowd = int(number % 100 == 0)
        polygon = make_polygon(box, count, rng)
        annotations.append(
            {
                "segmentation": _run_lengths(polygon, size) if crowd else [polygon],
                "area": round(0.6 * box[2] * box[3], 4),
                "iscrowd": crowd,
                "image_id": rows[owner]["id"],
                "bbox": box,
                "category_id": number % len(CATEGORIES) + 1,
                "id": number,
            }
        )
    return {"images": rows, "annotations": annotations, "categories": CATEGORIES}


def _run_lengths(polygon: list[float], size: tuple[int, int]) -> dict[str, Any]:
    flat = rle.decode(rle.frPyObjects([polygon], *size))[..., 0].ravel(order="F")
    return {"counts": np.diff([0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]).tolist(), "size": list(size)}


def write_split(root: Path, split: str, images: int, objects: int) -> Path:
    """A split in COCO's layout below ``root``; gives its annotation file."""
    write_images(root / split)
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.encode(make_annotations(images, objects, seed=len(split))))
    return path


def make_detections(truth: dict[str, list[dict[str, Any]]], seed: int = 0) -> list[dict[str, Any]]:
    """`DETECTIONS` rows an image in COCO's result format, with masks: objects moved a little, and boxes of nothing."""
    rng = np.random.default_rng(seed)
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    rows = []
    for image in truth["images"]:
        size = (image["height"], image["width"])
        own = objects[image["id"]][: DETECTIONS // 2]
        boxes = [np.array(a["bbox"]) + rng.normal(0, 0.05, 4) * np.tile(a["bbox"][2:], 2) for a in own]
        boxes += list(make_boxes(DETECTIONS - len(own), size, rng))
        for place, box in enumerate(boxes):
            mask = rle.merge(rle.frPyObjects([make_polygon(box.tolist(), 12, rng)], *size))
            rows.append(
                {
                    "image_id": image["id"],
                    "category_id": own[place]["category_id"] if place < len(own) else int(rng.integers(1, 81)),
                    "bbox": box.tolist(),
                    "score": float(rng.beta(4, 2) if place < len(own) else rng.beta(1, 6)),
                    "segmentation": {"size": list(size), "counts": mask["counts"].decode()},
                }
            )
    return rows


def write_files(root: Path, fraction: float) -> None:
    for split, sizes in {"train2017": TRAIN, "val2017": VAL}.items():
        images, objects = (max(1, round(fraction * count)) for count in sizes)
        path = write_split(root, split, images, objects)
    rows = make_detections(json.loads(path.read_bytes()))
    (root / "detections.json").write_bytes(msgspec.json.encode(rows))


def start(root: Path) -> None:
    COCODataset(*published_files(root, "train2017"), masks=True)


def read_samples(root: Path, count: int, masks: bool, fullest: bool = False) -> Callable[[], None]:
    transform = detection_transform(min_size=list(range(480, 801, 32)), max_size=1333, hflip=0.5)
    dataset = COCODataset(*published_files(root, "val2017"), masks=masks, transform=transform)
    counts = Counter(annotation["image_id"] for annotation in dataset.ground_truth()["annotations"])
    order = sorted(dataset.image_ids, key=lambda identity: -counts[identity]) if fullest else dataset.image_ids
    index = {identity: i for i, identity in enumerate(dataset.image_ids)}
    _ = dataset[0]  # loads kernels, once in a worker's life
    return partial(_read_all, dataset, [index[identity] for identity in order[:count]])


def read_samples_of_torchvision(root: Path, count: int) -> Callable[[], None]:
    resize = v2.RandomShortestSize(list(range(480, 801, 32)), max_size=1333)
    clean = [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()]
    transforms = v2.Compose([v2.ToImage(), resize, v2.RandomHorizontalFlip(), *clean])
    file = root / "annotations" / "instances_val2017.json"
    with contextlib.redirect_stdout(None):
        dataset = CocoDetection(str(root / "val2017"), str(file), transforms=transforms)
    dataset.ids = [identity for identity in dataset.ids if dataset.coco.getAnnIds(identity)]  # it fails on the others
    keys = ("boxes", "labels", "image_id")
    return partial(_read_all, wrap_dataset_for_transforms_v2(dataset, target_keys=keys), range(count))


def _read_all(dataset: Any, indices: Iterable[int]) -> None:
    torch.manual_seed(0)
    for index in indices:
        _ = dataset[index]


def match_anchors(objects: int) -> Callable[[], Any]:
    height, width = 800, 1066
    network = ProposalNetwork(list("01234"), 1, [[32], [64], [128], [256], [512]])
    maps = [torch.zeros(2, 1, -(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32, 64)]
    anchors = network.anchor_generator(ImageList(torch.zeros(2, 1, height, width), [(height, width)] * 2), maps)
    targets = [{"boxes": _corners(objects, (height, width), seed)} for seed in range(2)]
    return partial(network.assign_targets_to_anchors, anchors, targets)


def resample_masks(objects: int) -> Callable[[], Any]:
    """Of 128 boxes, as many as Mask R-CNN trains on at most."""
    size = (800, 1333)
    boxes = _corners(objects, size, 0)
    polygons = [[[x1, y1, x2, y1, x2, y2]] for x1, y1, x2, y2 in boxes.tolist()]
    masks = ObjectMasks.from_segmentations(polygons, size)
    rows = torch.arange(128) % objects
    return partial(mask_targets, masks, boxes[rows], rows, 28)


def _corners(count: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    boxes = torch.from_numpy(make_boxes(count, size, np.random.default_rng(seed))).float()
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def evaluate(root: Path, backend: Any) -> None:
    """All that a run reports."""
    dataset = COCODataset(*published_files(root, "val2017"), masks=True)
    rows = msgspec.json.decode((root / "detections.json").read_bytes(), type=list[msgspec.Raw])
    kinds: Any = {"iou_types": ("bbox", "segm"), "metrics": ("coco", "voc")}
    evaluator = DetectionEvaluator(dataset, backend=backend, **kinds)
    for i, image_id in enumerate(dataset.image_ids):
        found = rows[i * DETECTIONS : (i + 1) * DETECTIONS]
        evaluator.add(image_id, Detections.of([msgspec.json.decode(row) for row in found]))
    metrics, errors = evaluator.compute(), evaluator.errors()
    write_results(root / RESULTS, evaluator.results())
    write_pictures(root / "pictures", dataset, evaluator.results(), masks=True)
    (root / f"metrics_{backend}.json").write_text(json.dumps([metrics, errors]))


def padding(sizes: torch.Tensor, batch_size: int, grouped: bool) -> float:
    """Of images of (height, width), each many times, in percent."""
    sizes = sizes.repeat(-(-100_000 // len(sizes)), 1).double()
    scale = torch.minimum(800 / sizes.amin(1), 1333 / sizes.amax(1))
    sampler = TrainSampler(sizes, groups=sizes[:, 0] > sizes[:, 1] if grouped else None, batch_size=batch_size)
    order = torch.tensor([key.index for key in sampler])[: len(sizes) // batch_size * batch_size]
    images = (sizes * scale[:, None]).floor()[order].reshape(-1, batch_size, 2)
    batch = (images.amax(1) / 32).ceil() * 32  # as torchvision pads them
    return 100 - 100 * float(images.prod(2).sum() / (batch_size * batch.prod(1).sum()))


class _Worker(Dataset[int]):
    """Private bytes of the process that reads a sample's annotations."""

    def __init__(self, dataset: COCODataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> int:
        dataset = self.dataset
        begin, end = dataset._ends[index : index + 2].tolist()
        _ = dataset._boxes[begin:end].sum(), [dataset._segmentations[i] for i in range(begin, end)]  # type: ignore[index]
        return _kilobytes("smaps_rollup", "Private_") if index in (0, len(self) - 1) else 0


def worker_memory(root: Path, start_method: str) -> float:
    """MiB."""
    dataset = _Worker(COCODataset(*published_files(root, "train2017"), masks=True))
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=start_method)
    sizes = [size for size in loader if size]
    return (sizes[-1] - sizes[0]) / 1024


def _kilobytes(file: str, prefix: str) -> int:
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(prefix))


def _measure(connection: Any, function: Any, arguments: tuple[Any, ...]) -> None:
    before, begin = _kilobytes("status", "VmHWM"), time.process_time()
    result = function(*arguments)
    if callable(result):  # what was prepared
        before, begin = _kilobytes("status", "VmHWM"), time.process_time()
        result = result()
    seconds = time.process_time() - begin
    peak = (_kilobytes("status", "VmHWM") - before) / 1024
    connection.send((seconds, result if isinstance(result, float) else peak))


def measure(name: str, function: Any, *arguments: Any) -> dict[str, Any]:
    """A row: what a function takes in a new process, which is as small as this one has stayed."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_measure, args=(sender, function, arguments))
    process.start()
    sender.close()
    seconds, memory = receiver.recv()
    process.join()
    row = {"what": name, "cpu_s": round(seconds, 2), "memory_mib": round(memory)}
    print(f"{name:40} {seconds:8.2f} s {memory:8.0f} MiB", flush=True)
    return row


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--fraction", type=positive, default=1, help="of COCO's images and objects; default: 1")
    parser.add_names("--workers", ("fork", "spawn"), "how workers start: ALL; default: both", default=["fork", "spawn"])
    parser.add_argument(
        "--output", type=Path, default=Path("results/scale"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--sizes-of", type=Path, metavar="FOLDER", help="of which train2017 padding is; default: the synthetic images"
    )
    options = parser.parse_args(argv)
    samples, most, anchors, masks = (max(1, round(options.fraction * count)) for count in (500, 20, 500, 300))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        table = [
            measure("making the files", write_files, root, options.fraction),
            measure("start with masks, first", start, root),
            measure("start with masks, second", start, root),
            *(measure(f"worker, {method}", worker_memory, root, method) for method in options.workers),
            measure(f"samples, {samples} with boxes", read_samples, root, samples, False),
            measure(f"samples, {samples} with boxes, torchvision", read_samples_of_torchvision, root, samples),
            measure(f"samples, {samples} with masks", read_samples, root, samples, True),
            measure(f"samples, the {most} fullest with masks", read_samples, root, most, True, True),
            measure(f"matching anchors, {anchors} objects", match_anchors, anchors),
            measure(f"mask targets, {masks} objects", resample_masks, masks),
            *(measure(f"evaluation, {name}", evaluate, root, name) for name in ("faster_coco_eval", "pycocotools")),
        ]
        sizes = COCODataset(*published_files(options.sizes_of or root, "train2017")).image_sizes
        for batch_size, grouped in product((2, 16), (False, True)):
            name = f"padding, batches of {batch_size}{', orientations grouped' * grouped}"
            table.append({"what": name, "padding_percent": round(padding(sizes, batch_size, grouped), 1)})
            print(f"{name:40} {table[-1]['padding_percent']:8.1f} %")
    write_csv_atomically(options.output / "scale.csv", table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
