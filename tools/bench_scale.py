"""Measures time and memory of annotations, samples, training targets and evaluation at COCO's size, on synthetic data.

    python tools/bench_scale.py                      # 118,287 and 5,000 images; a quarter of an hour, 8 GB of disk
    python tools/bench_scale.py --fraction 0.01      # a hundredth of the images, samples, objects and runs
    python tools/bench_scale.py --objects365 0.1     # a tenth of Objects365's 1.7 million images, with boxes alone
    python tools/bench_scale.py --sizes-of FOLDER    # padding of the images of a data set in COCO's layout

Each row is measured in its own process: CPU seconds of all its threads, and the peak memory above the memory before, or
for workers the private memory added by reading the annotations of all samples. Samples have shorter sides from 480 to
800 pixels; those of torchvision are from the same files with the same transforms. Masks are also measured on the images
with the most objects. Anchors are for two images of 800 x 1066, mask targets for one of 800 x 1333. There are 100
predicted masks per image, for inputs of 800 x 1333 and files of 480 x 800; torchvision's are pasted into the input and
then resized. A study is planned at its first start; at the second start all runs are finished, so the time is that of
the program itself. The disk space of a run is that of its files, for Mask R-CNN with ResNet-50 and 80 classes. Padding
is the share of the pixels of training batches that do not belong to an image, with shorter sides of 800 and longer
sides of at most 1333 pixels. Requires Linux.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from command_line import Parser, positive
from scale.objects365 import IMAGES, SPLIT, write_boxes
from scale.pasting import encode_masks, encode_pasted_masks
from scale.studies import finish_runs, plan_study, start_again, train_briefly
from scale.synthetic import DETECTIONS, TRAIN, VAL, make_boxes, make_detections, write_split
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


def write_files(root: Path, fraction: float) -> None:
    for split, sizes in {"train2017": TRAIN, "val2017": VAL}.items():
        images, objects = (max(1, round(fraction * count)) for count in sizes)
        path = write_split(root, split, images, objects)
    rows = make_detections(json.loads(path.read_bytes()))
    (root / "detections.json").write_bytes(msgspec.json.encode(rows))


def start(root: Path, split: str, masks: bool) -> None:
    COCODataset(*published_files(root, split), masks=masks)


def read_samples(root: Path, count: int, masks: bool, fullest: bool = False) -> Callable[[], None]:
    transform = detection_transform(min_size=list(range(480, 801, 32)), max_size=1333, hflip=0.5)
    dataset = COCODataset(*published_files(root, "val2017"), masks=masks, transform=transform)
    counts = Counter(annotation["image_id"] for annotation in dataset.ground_truth()["annotations"])
    order = sorted(dataset.image_ids, key=lambda identity: -counts[identity]) if fullest else dataset.image_ids
    index = {identity: i for i, identity in enumerate(dataset.image_ids)}
    _ = dataset[0]  # loads kernels, once per worker
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
    """Mask targets of 128 boxes, the maximum on which Mask R-CNN trains per image."""
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
    """Computes everything that a run reports."""
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
    """Share of padding in batches of images with sizes (height, width), in percent."""
    sizes = sizes.repeat(-(-100_000 // len(sizes)), 1).double()
    scale = torch.minimum(800 / sizes.amin(1), 1333 / sizes.amax(1))
    sampler = TrainSampler(sizes, groups=sizes[:, 0] > sizes[:, 1] if grouped else None, batch_size=batch_size)
    order = torch.tensor([key.index for key in sampler])[: len(sizes) // batch_size * batch_size]
    images = (sizes * scale[:, None]).floor()[order].reshape(-1, batch_size, 2)
    batch = (images.amax(1) / 32).ceil() * 32  # as torchvision pads them
    return 100 - 100 * float(images.prod(2).sum() / (batch_size * batch.prod(1).sum()))


class _Worker(Dataset[int]):
    """Reads a sample's annotations, and returns the private memory of the process in KiB (0 for most samples)."""

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
    """Private memory in MiB that a worker adds by reading the annotations of all samples."""
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
    if callable(result):  # a prepared call, which is what is measured
        before, begin = _kilobytes("status", "VmHWM"), time.process_time()
        result = result()
    seconds = time.process_time() - begin
    peak = (_kilobytes("status", "VmHWM") - before) / 1024
    connection.send((seconds, result if isinstance(result, float) else peak))


def measure(name: str, function: Any, *arguments: Any) -> dict[str, Any]:
    """Measures a function in a new process, forked from this one, which is kept small; prints and returns the row."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_measure, args=(sender, function, arguments))
    process.start()
    sender.close()
    seconds, memory = receiver.recv()
    process.join()
    print(f"{name:50} {seconds:8.2f} s {memory:8.0f} MiB", flush=True)
    return {"what": name, "cpu_s": round(seconds, 2), "memory_mib": round(memory)}


def coco_rows(root: Path, fraction: float, workers: Sequence[str]) -> Iterator[dict[str, Any]]:
    counts = (500, 20, 500, 300, 50)
    samples, most, anchors, masks, images = (max(1, round(fraction * count)) for count in counts)
    yield measure("making the files", write_files, root, fraction)
    for nth in ("first", "second"):
        yield measure(f"start with masks, {nth}", start, root, "train2017", True)
    for method in workers:
        yield measure(f"worker, {method}", worker_memory, root, method)
    yield measure(f"samples, {samples} with boxes", read_samples, root, samples, False)
    yield measure(f"samples, {samples} with boxes, torchvision", read_samples_of_torchvision, root, samples)
    yield measure(f"samples, {samples} with masks", read_samples, root, samples, True)
    yield measure(f"samples, the {most} fullest with masks", read_samples, root, most, True, True)
    yield measure(f"matching anchors, {anchors} objects", match_anchors, anchors)
    yield measure(f"mask targets, {masks} objects", resample_masks, masks)
    yield measure(f"predicted masks, {images} images", encode_masks, images)
    yield measure(f"predicted masks, {images} images, torchvision", encode_pasted_masks, images)
    for name in ("faster_coco_eval", "pycocotools"):
        yield measure(f"evaluation, {name}", evaluate, root, name)


def objects365_rows(root: Path, fraction: float) -> Iterator[dict[str, Any]]:
    images = max(1, round(fraction * IMAGES))
    yield measure(f"making the file of Objects365, {images} images", write_boxes, root, fraction)
    for nth in ("first", "second"):
        yield measure(f"start with Objects365, {images} images, {nth}", start, root, SPLIT, False)


def study_rows(folder: Path, fraction: float) -> Iterator[dict[str, Any]]:
    seeds = max(1, round(fraction * 150))
    yield measure(f"study of {2 * seeds} runs, planned", plan_study, folder, seeds)
    finish_runs(folder)
    yield row(f"study of {2 * seeds} runs, finished", "cpu_s", start_again(folder, seeds))


def disk_rows(root: Path) -> Iterator[dict[str, Any]]:
    """Disk space of a run's files. Call it after `coco_rows`, whose evaluation writes the predictions."""
    run_dir = root / "run"
    train_briefly(root / "small", run_dir)
    files = {
        "checkpoints": run_dir.glob("checkpoints/*"),
        "predictions": [root / RESULTS],
        "pictures": run_dir.glob("pictures/*"),
    }
    for name, some in files.items():
        yield row(f"disk of a run, {name}", "disk_mib", sum(file.stat().st_size for file in some) / 2**20)


def padding_rows(root: Path) -> Iterator[dict[str, Any]]:
    sizes = COCODataset(*published_files(root, "train2017")).image_sizes
    for batch_size, grouped in product((2, 16), (False, True)):
        name = f"padding, batches of {batch_size}{', orientations grouped' * grouped}"
        yield row(name, "padding_percent", padding(sizes, batch_size, grouped))


def row(name: str, column: str, value: float) -> dict[str, Any]:
    """Prints and returns a row with a single value."""
    print(f"{name:50} {value:8.2f} {column}", flush=True)
    return {"what": name, column: round(value, 2 if column == "cpu_s" else 1)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--fraction", type=positive, default=1, help="of COCO's images and objects; default: 1")
    text = "of Objects365's images and boxes; default: 1"
    add("--objects365", type=positive, default=1, metavar="FRACTION", help=text)
    parser.add_names("--workers", ("fork", "spawn"), "how workers start: ALL; default: both", default=["fork", "spawn"])
    add("--output", type=Path, default=Path("results/scale"), metavar="FOLDER", help="default: %(default)s")
    text = "of which train2017 padding is; default: the synthetic images"
    add("--sizes-of", type=Path, metavar="FOLDER", help=text)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        table = [
            *coco_rows(root, options.fraction, options.workers),
            *objects365_rows(root, options.objects365),
            *study_rows(root / "study", options.fraction),
            *disk_rows(root),
            *padding_rows(options.sizes_of or root),
        ]
    write_csv_atomically(options.output / "scale.csv", table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
