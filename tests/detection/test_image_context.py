"""The vector of the whole image that box heads may have: what it is pooled from, and where it goes."""

import torch

from detpool.detection.backbones.maps import IMAGE_MAP, IMAGE_PREFIX
from detpool.detection.heads import ImageContext
from detpool.detection.roi_heads import TwoStageHeads


def features(prefix: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {IMAGE_MAP: torch.rand(2, 8, 4, 6, generator=generator)}
    if prefix:
        found[IMAGE_PREFIX] = torch.rand(2, prefix, 8, generator=generator)
    return found


def test_what_each_word_pools():
    shapes = [(64, 96), (40, 60)]  # of the second image 3 x 4 cells of stride 16; the others are padding
    for word in ("cls", "mean", "attention"):
        context = ImageContext(word, 8, 5, stride=16)
        maps = features(prefix=2)
        vectors = context(maps, shapes)
        cells = [maps[IMAGE_MAP][0].flatten(1).T, maps[IMAGE_MAP][1, :, :3, :4].flatten(1).T]
        for vector, tokens, prefix in zip(vectors, cells, maps[IMAGE_PREFIX], strict=True):
            pooled = {
                "cls": lambda tokens, prefix: prefix[0],
                "mean": lambda tokens, prefix: tokens.mean(0),
                "attention": lambda tokens, prefix, pool=context.pool: pool(torch.cat([prefix, tokens])[None])[0, 0],
            }[word](tokens, prefix)
            normalised = (pooled - pooled.mean()) / (pooled.var(unbiased=False) + 1e-5).sqrt()
            linear = context.project[1]
            torch.testing.assert_close(vector, linear.weight @ normalised + linear.bias)


def test_it_is_added_to_the_vectors_of_its_images_rois():
    class Predictor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(3, 6))

        def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return vectors @ self.weight.T, vectors

    pooled = torch.rand(5, 6, generator=torch.Generator().manual_seed(1))
    heads = TwoStageHeads(lambda *_: pooled, torch.nn.Identity(), Predictor())
    boxes, shapes = [torch.zeros(2, 4), torch.zeros(3, 4)], [(64, 96), (64, 96)]
    plain, _ = heads.classify(features(), boxes, shapes)
    heads.image_context = context = ImageContext("mean", 8, 6, stride=16)
    logits, vectors = heads.classify(features(), boxes, shapes)
    images = context(features(), shapes)[[0, 0, 1, 1, 1]]
    torch.testing.assert_close(vectors, pooled + images)
    # The same as a predictor of both side by side.
    weight = heads.box_predictor.weight
    torch.testing.assert_close(logits, plain + images @ weight.T)
