"""Sources of proposals: torchvision's region proposal network, the batch itself, or its objects."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from detpool.detection.assignment import BoxCoder, match_boxes
from detpool.detection.detector import Target, has_objects
from detpool.detection.localization import displaced_boxes, jittered_boxes
from detpool.detection.sampling import count_samples, draw_samples
from detpool.detection.suppression import suppress
from detpool.errors import ConfigError, check_numbers


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's RPN (Ren et al., NIPS 2015) on some of the feature maps, with losses in training and evaluation.

    Args:
        map_names: names of the maps.
        channels: number of channels of the maps.
        anchor_sizes: anchor sizes in pixels, one list per map.
        aspect_ratios: height / width of the anchors, the same for all maps.
        pre_nms_top_n_train, pre_nms_top_n_test: number of proposals per map before non-maximum suppression.
        post_nms_top_n_train, post_nms_top_n_test: maximum number of proposals per image.
        nms_thresh: IoU threshold of non-maximum suppression.
        fg_iou_thresh, bg_iou_thresh: minimum IoU of an anchor with an object to be positive, and IoU below which it is
            background.
        batch_size_per_image: number of anchors sampled per image for the losses.
        positive_fraction: maximum fraction of positive anchors among these.
        score_thresh: proposals with a lower score, in [0, 1], are dropped.
        strides: strides of the maps in pixels. If one of them is not an integer, the anchors of cell i are centered at
            pixel i x stride. If None or all integers, torchvision computes strides from the sizes of image and map.

    Raises:
        ConfigError: If `anchor_sizes` does not have one list for each map, or a number is out of range.
    """

    def __init__(
        self,
        map_names: Sequence[str],
        channels: int,
        anchor_sizes: Sequence[Sequence[int]],
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        *,
        pre_nms_top_n_train: int = 2000,
        pre_nms_top_n_test: int = 1000,
        post_nms_top_n_train: int = 2000,
        post_nms_top_n_test: int = 1000,
        nms_thresh: float = 0.7,
        fg_iou_thresh: float = 0.7,
        bg_iou_thresh: float = 0.3,
        batch_size_per_image: int = 256,
        positive_fraction: float = 0.5,
        score_thresh: float = 0.0,
        strides: Sequence[float] | None = None,
    ) -> None:
        if len(anchor_sizes) != len(map_names):
            raise ConfigError(
                f"model.rpn.anchor_sizes must have {len(map_names)} entries, one per map that proposals come from "
                f"({', '.join(map_names)}), got {len(anchor_sizes)}: {[list(sizes) for sizes in anchor_sizes]}"
            )
        check = functools.partial(check_numbers, "model.rpn")
        check("at least 1", lambda n: n >= 1, batch_size_per_image=batch_size_per_image)
        check("0 to 1", lambda n: 0 <= n <= 1, positive_fraction=positive_fraction, nms_thresh=nms_thresh)
        check("0 to 1", lambda n: 0 <= n <= 1, fg_iou_thresh=fg_iou_thresh)
        check(f"0 to fg_iou_thresh={fg_iou_thresh}", lambda n: 0 <= n <= fg_iou_thresh, bg_iou_thresh=bg_iou_thresh)
        anchors = AnchorGenerator(
            tuple(tuple(sizes) for sizes in anchor_sizes), (tuple(aspect_ratios),) * len(anchor_sizes)
        )
        super().__init__(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh,
            bg_iou_thresh,
            batch_size_per_image,
            positive_fraction,
            {"training": pre_nms_top_n_train, "testing": pre_nms_top_n_test},
            {"training": post_nms_top_n_train, "testing": post_nms_top_n_test},
            nms_thresh,
            score_thresh,
        )
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.map_names = list(map_names)
        self.strides = list(strides) if strides and any(stride != int(stride) for stride in strides) else None

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Target] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns proposals (n, 4) of each image in pixels, and losses if `targets` have boxes."""
        maps = [features[name] for name in self.map_names]
        objectness, deltas = self.head(maps)
        # Boxes stay float32 if maps have half precision: bfloat16 resolves only 4 pixels from 512 on.
        exact = torch.promote_types(maps[0].dtype, torch.float32)
        anchors = self._anchors(images, maps, exact)
        anchors_per_map = [scores[0].numel() for scores in objectness]
        objectness, deltas = (values.to(exact) for values in concat_box_prediction_layers(objectness, deltas))
        # Detached: in Faster R-CNN, proposals are treated as constants.
        boxes = self.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        found, numbers = self._suppress(boxes, objectness, images.image_sizes, anchors_per_map)
        if not has_objects(targets):
            return _first(found, numbers.tolist()), {}
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        numbers = torch.cat([numbers[:, None], count_samples(labels)], 1)
        counts = numbers.tolist()  # the only wait except for suppression
        drawn = draw_samples(self.fg_bg_sampler, labels, [count[1:] for count in counts])
        losses = self._losses(objectness, deltas, labels, self.box_coder.encode(matched, anchors), drawn)
        return _first(found, [count[0] for count in counts]), losses

    def _anchors(self, images: ImageList, maps: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Returns the anchors (n, 4) of each image, map by map."""
        if self.strides is None:
            return self.anchor_generator(images, [m.new_empty(m.shape[-2:], dtype=dtype) for m in maps])
        # The generator uses integer division of sizes, which would give 1 for the square root of 2.
        self.anchor_generator.set_cell_anchors(dtype, maps[0].device)
        sizes = [list(m.shape[-2:]) for m in maps]
        anchors = self.anchor_generator.grid_anchors(sizes, [[stride, stride] for stride in self.strides])
        return [torch.cat(anchors)] * len(images.image_sizes)

    def _suppress(
        self, boxes: Tensor, objectness: Tensor, image_sizes: list[tuple[int, int]], anchors_per_map: list[int]
    ) -> tuple[list[Tensor], Tensor]:
        """Returns boxes of each image, of which the first are the proposals, best first, and the number of proposals.

        The proposals are those of torchvision's `filter_proposals`, which waits for a GPU at each step of each image.
        """
        objectness = objectness.detach().reshape(len(boxes), -1)
        places = self._get_top_n_idx(objectness, anchors_per_map)
        maps = torch.cat([torch.full((n,), i, device=boxes.device) for i, n in enumerate(anchors_per_map)])[places]
        scores = objectness.gather(1, places).sigmoid()
        boxes = boxes.gather(1, places[:, :, None].expand(-1, -1, 4))
        kept, numbers = [], []
        for box, score, level, size in zip(boxes, scores, maps, image_sizes, strict=True):
            box = clip_boxes_to_image(box, size)
            good = ((box[:, 2:] - box[:, :2]) >= self.min_size).all(1) & (score >= self.score_thresh)
            # Excluded boxes do not suppress the others, and come last.
            score, level = torch.where(good, score, -1), torch.where(good, level, level + len(anchors_per_map))
            rows = suppress(box, score, level, self.nms_thresh)
            kept.append(box[rows[: self.post_nms_top_n()]])
            numbers.append(good[rows].sum())
        return kept, torch.stack(numbers)

    def _losses(
        self,
        objectness: Tensor,
        deltas: Tensor,
        labels: list[Tensor],
        targets: Sequence[Tensor],
        drawn: list[tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        """Computes torchvision's losses of the sampled anchors."""
        starts = [number * len(label) for number, label in enumerate(labels)]
        positive = torch.cat([rows + start for (rows, _), start in zip(drawn, starts, strict=True)])
        negative = torch.cat([rows + start for (_, rows), start in zip(drawn, starts, strict=True)])
        both = torch.cat([positive, negative])
        if len(both) == 0:
            # No anchor is positive or background, and the mean over none would be NaN.
            return {"loss_objectness": objectness.sum() * 0, "loss_rpn_box_reg": deltas.sum() * 0}
        wanted = torch.cat(list(targets))[positive]
        box_loss = F.smooth_l1_loss(deltas[positive], wanted, beta=1 / 9, reduction="sum") / len(both)
        object_loss = F.binary_cross_entropy_with_logits(objectness.flatten()[both], torch.cat(labels)[both])
        return {"loss_objectness": object_loss, "loss_rpn_box_reg": box_loss}

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[Target]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns labels (n,) of each image, 1: object, 0: background, -1: neither, and matched boxes (n, 4).

        Unlike torchvision's, it does not need several matrices of all anchors and objects.
        """
        labels, matched = [], []
        for boxes, target in zip(anchors, targets, strict=True):
            objects = target["boxes"]
            if len(objects) == 0:
                labels.append(torch.zeros_like(boxes[:, 0]))
                matched.append(torch.zeros_like(boxes))
                continue
            matches = match_boxes(self.proposal_matcher, objects, boxes)
            labels.append(torch.where(matches < 0, matches + 1, 1).to(boxes))
            matched.append(objects[matches.clamp(min=0)])
        return labels, matched


def _first(boxes: list[Tensor], numbers: Sequence[int]) -> list[Tensor]:
    return [box[:number] for box, number in zip(boxes, numbers, strict=True)]


class GivenProposals(nn.Module):
    """Proposals given in the targets of the batch, as `proposals` (n, 4), for Fast R-CNN (Girshick, ICCV 2015).

    Args:
        top_n_train, top_n_test: number of proposals per image that are used, from the first on.
    """

    def __init__(self, top_n_train: int = 2000, top_n_test: int = 1000) -> None:
        super().__init__()
        self.top_n_train, self.top_n_test = top_n_train, top_n_test

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Target] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns the proposals, clipped to the images, and no losses.

        Raises:
            ValueError: If proposals are missing in the targets.
        """
        if targets is None or any("proposals" not in target for target in targets):
            raise ValueError(
                "proposals=given: the targets hold no 'proposals'; data.train_proposals and data.val_proposals "
                "name files of them (tools/write_proposals.py writes such files)"
            )
        count = self.top_n_train if self.training else self.top_n_test
        proposals = [target["proposals"][:count].to(images.tensors) for target in targets]
        limits = [torch.tensor([w, h, w, h], device=images.tensors.device) for h, w in images.image_sizes]
        return [torch.minimum(p.clamp(min=0), limit) for p, limit in zip(proposals, limits, strict=True)], {}


class JitteredProposals(nn.Module):
    """Proposals generated from the objects, in training and in evaluation, for studies of the second stage alone.

    Detectors with them differ only in the second stage. Their metrics measure classification, boxes and masks given
    that every object was found, and cannot be compared with those of other detectors. Random numbers come from
    PyTorch's generator.

    Args:
        boxes_per_object: number of boxes around each object, uniformly distributed over IoUs from `min_iou` to 1 (see
            `jittered_boxes`).
        min_iou: their minimum IoU; boxes below the heads' threshold (0.5) are background.
        background_per_object: number of boxes per object with the sizes of objects, anywhere in the image.
        noise: distance of all boxes from their objects, as defined by `displaced_boxes`, instead of uniformly
            distributed IoUs; 0: the objects themselves.
        iou: likewise, IoU of all boxes with their objects.

    Raises:
        ConfigError: If an argument is out of range, or both `noise` and `iou` are given.
    """

    def __init__(
        self,
        boxes_per_object: int = 8,
        min_iou: float = 0.3,
        background_per_object: int = 4,
        noise: float | None = None,
        iou: float | None = None,
    ) -> None:
        super().__init__()
        check = functools.partial(check_numbers, "model.proposals")
        check("at least 1", lambda n: n >= 1, boxes_per_object=boxes_per_object)
        check("between 0 and 1", lambda n: 0 < n < 1, min_iou=min_iou)
        check("at least 0", lambda n: n >= 0, background_per_object=background_per_object)
        if noise is not None and iou is not None:
            raise ConfigError(f"noise and iou both say how far boxes are from objects: give one, got {noise} and {iou}")
        check("at least 0 and finite", lambda n: 0 <= n < math.inf, noise=0 if noise is None else noise)
        check("above 0 and at most 1", lambda n: 0 < n <= 1, iou=1 if iou is None else iou)
        self.boxes_per_object, self.min_iou = boxes_per_object, min_iou
        self.noise, self.iou = noise, iou
        self.background_per_object = background_per_object

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Target] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns proposals (n, 4) of each image, none if it has no objects, and no losses.

        Raises:
            ValueError: If the targets do not have boxes.
        """
        if not has_objects(targets):
            raise ValueError("proposals=jittered: the targets must hold the objects' 'boxes', also in evaluation")
        shapes = images.image_sizes
        boxes = [t["boxes"].to(images.tensors) for t in targets]
        return [self._proposals(box, shape) for box, shape in zip(boxes, shapes, strict=True)], {}

    def _proposals(self, objects: Tensor, shape: tuple[int, int]) -> Tensor:
        if len(objects) == 0:
            return objects
        if self.noise is None and self.iou is None:
            around, _ = jittered_boxes(objects, shape, self.boxes_per_object * len(objects), self.min_iou)
        else:
            around = displaced_boxes(objects.repeat(self.boxes_per_object, 1), shape, self.noise, self.iou)
        sizes = (objects[:, 2:] - objects[:, :2]).repeat(self.background_per_object, 1)
        room = objects.new_tensor([shape[1], shape[0]]) - sizes
        corners = torch.rand_like(sizes) * room
        return torch.cat([around, torch.cat([corners, corners + sizes], 1)])
