"""Data sets, transforms, samplers and the Lightning datamodule."""

from detpool.extras import require

require()

from detpool.data.coco import COCODataset
from detpool.data.datamodule import DetectionDataModule
from detpool.data.dataset import DetectionDataset
from detpool.data.sampling import SampleKey
from detpool.data.shapes import ShapesDataset
from detpool.data.transforms import detection_transform
from detpool.data.voc import VOCDataset
from detpool.errors import DataError

__all__ = [
    "COCODataset",
    "DataError",
    "DetectionDataModule",
    "DetectionDataset",
    "SampleKey",
    "ShapesDataset",
    "VOCDataset",
    "detection_transform",
]
