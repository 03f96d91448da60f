"""The two primitives in plain PyTorch, for any device and dtype: the oracle of every test and the last resort.

The separable sum is written as what it is, a product of three matrices a RoI, ``Wy F Wx^T``, with the taps scattered
into dense (P, H) and (P, W) weights. Work goes in chunks of RoIs so that intermediates stay small.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..layout import cell_dtype, memory_format

Shape = tuple[int, int, int, int]
Groups = tuple[int, int]

CHUNK_ELEMENTS = 1 << 23


def reasons_against(primitive: str, tensors: dict[str, Tensor]) -> list[str]:
    """The reference serves every call."""
    return []


def separable_sum(
    features: Tensor, batch: Tensor, iy: Tensor, wy: Tensor, ix: Tensor, wx: Tensor, groups: Groups
) -> Tensor:
    """See :func:`detpool.ops.separable.separable_sum`."""
    channels = features.shape[1] // (groups[0] * groups[1])
    output = wy.new_zeros((batch.shape[0], channels, iy.shape[1], ix.shape[2]))
    for rows, columns, source in bin_blocks(features.to(wy.dtype), output, groups):
        block = _Block(source, batch, iy, wy, ix, wx, rows, columns)
        part = block.bins_to_rois(output[:, :, rows, columns]).clone()
        for image, k in block.chunks():
            part[k] = torch.einsum("nih,chw,njw->ncij", block.y[k], source[image], block.x[k])
        output[:, :, rows, columns] = block.rois_to_bins(part)
    return output.to(features.dtype)


def separable_transpose(
    grad: Tensor,
    batch: Tensor,
    iy: Tensor,
    wy: Tensor,
    ix: Tensor,
    wx: Tensor,
    shape: Shape,
    groups: Groups,
    channels_last: bool,
) -> Tensor:
    """See :func:`detpool.ops.separable.separable_transpose`."""
    output = wy.new_zeros(shape)
    for rows, columns, target in bin_blocks(output, grad, groups):
        block = _Block(target, batch, iy, wy, ix, wx, rows, columns)
        part = block.bins_to_rois(grad[:, :, rows, columns].to(wy.dtype))
        for image, k in block.chunks():
            target[image] += torch.einsum("ncij,nih,njw->chw", part[k], block.y[k], block.x[k])
    return output.to(grad.dtype).contiguous(memory_format=memory_format(channels_last))


def separable_weight_grads(
    grad: Tensor, features: Tensor, batch: Tensor, iy: Tensor, wy: Tensor, ix: Tensor, wx: Tensor, groups: Groups
) -> tuple[Tensor, Tensor]:
    """See :func:`detpool.ops.separable.separable_weight_grads`."""
    grad_wy, grad_wx = torch.zeros_like(wy), torch.zeros_like(wx)
    for rows, columns, source in bin_blocks(features.to(wy.dtype), grad, groups):
        block = _Block(source, batch, iy, wy, ix, wx, rows, columns)
        part = block.bins_to_rois(grad[:, :, rows, columns].to(wy.dtype))
        grad_y, grad_x = torch.zeros_like(block.y), torch.zeros_like(block.x)
        for image, k in block.chunks():
            grad_y[k] = torch.einsum("ncij,njw,chw->nih", part[k], block.x[k], source[image])
            grad_x[k] = torch.einsum("ncij,nih,chw->njw", part[k], block.y[k], source[image])
        block.add_taken(grad_y, iy, grad_wy)
        block.add_taken(grad_x, ix, grad_wx)
    return grad_wy, grad_wx


def window_max(
    features: Tensor, batch: Tensor, y_windows: Tensor, x_windows: Tensor, groups: Groups
) -> tuple[Tensor, Tensor]:
    """See :func:`detpool.ops.window_max.window_max`."""
    width = features.shape[3]
    channels = features.shape[1] // (groups[0] * groups[1])
    shape = (batch.shape[0], channels, y_windows.shape[1], x_windows.shape[1])
    output = features.new_zeros(shape)
    argmax = torch.full(shape, -1, dtype=cell_dtype(features), device=features.device)
    y, y_inside = _window_cells(y_windows)
    x, x_inside = _window_cells(x_windows)
    # (K, PH, PW, TH, TW), row-major within a window so that ties go to the first cell
    cell = y[:, :, None, :, None] * width + x[:, None, :, None, :]
    inside = y_inside[:, :, None, :, None] & x_inside[:, None, :, None, :]
    cell, inside = cell.flatten(3), inside.flatten(3)
    if cell.shape[3] == 0:
        return output, argmax
    for rows, columns, planes in bin_blocks(features, output, groups):
        source = planes.flatten(2)
        size = max(1, CHUNK_ELEMENTS // (channels * cell[0, rows, columns].numel()))
        for k in torch.arange(batch.shape[0], device=features.device).split(size):
            index, valid = cell[k][:, rows, columns], inside[k][:, rows, columns]
            values = source[batch[k][:, None, None, None], :, index]
            values = values.masked_fill(~valid[..., None], -torch.inf)
            # An invalid cell must not win a tie of -inf: NaN apart, the first *valid* maximum is the answer.
            maximum = values.amax(dim=3, keepdim=True)
            first = (((values == maximum) | values.isnan()) & valid[..., None]).to(torch.uint8).argmax(dim=3)
            some = valid.any(dim=3)[..., None]
            output[k, :, rows, columns] = maximum[:, :, :, 0].where(some, 0.0).movedim(3, 1)
            where = index.gather(3, first).to(argmax.dtype).where(some, -1)
            argmax[k, :, rows, columns] = where.movedim(3, 1)
    return output, argmax


def window_scatter(
    grad: Tensor, argmax: Tensor, batch: Tensor, shape: Shape, groups: Groups, channels_last: bool
) -> Tensor:
    """See :func:`detpool.ops.window_max.window_scatter`."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    output = torch.zeros(shape, dtype=dtype, device=grad.device)
    index = _plane_index(argmax, batch, shape, groups).flatten()
    values = grad.to(dtype).where(argmax >= 0, 0.0).flatten()
    output.view(-1).index_add_(0, index, values)
    return output.to(grad.dtype).contiguous(memory_format=memory_format(channels_last))


def window_gather(features: Tensor, argmax: Tensor, batch: Tensor, groups: Groups) -> Tensor:
    """See :func:`detpool.ops.window_max.window_gather`."""
    shape = (features.shape[0], features.shape[1], features.shape[2], features.shape[3])
    index = _plane_index(argmax, batch, shape, groups)
    return features.reshape(-1)[index].where(argmax >= 0, 0.0)


def bin_blocks(features: Tensor, output: Tensor, groups: Groups) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows and columns of output bins that read the same channels, with a view of those channels."""
    height, width = output.shape[2] // groups[0], output.shape[3] // groups[1]
    for i in range(groups[0]):
        for j in range(groups[1]):
            rows, columns = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            yield rows, columns, features[:, i * groups[1] + j :: groups[0] * groups[1]]


class _Block:
    """Bins that read the same channels, with their taps as dense weights ``y`` (n, bins, H) and ``x`` (n, bins, W).

    Where the taps of one axis depend on the bin of the other, every bin becomes a RoI with one bin.
    """

    def __init__(
        self,
        source: Tensor,
        batch: Tensor,
        iy: Tensor,
        wy: Tensor,
        ix: Tensor,
        wx: Tensor,
        rows: slice,
        columns: slice,
    ) -> None:
        self.source, self.rois = source, batch
        self.joint = iy.shape[2] > 1 or ix.shape[1] > 1
        self.rows, self.columns = rows, columns
        self.bins = (rows.stop - rows.start, columns.stop - columns.start)
        if self.joint:
            self.rois = batch.repeat_interleave(self.bins[0] * self.bins[1])
        self.y = self._dense(iy, wy, source.shape[2])
        self.x = self._dense(ix, wx, source.shape[3])

    def _part(self, taps: Tensor) -> Tensor:
        """This block's taps of an axis: (K, bins of y or 1, bins of x or 1, T)."""
        rows = self.rows if taps.shape[1] > 1 else slice(None)
        columns = self.columns if taps.shape[2] > 1 else slice(None)
        return taps[:, rows, columns]

    def _dense(self, index: Tensor, weight: Tensor, length: int) -> Tensor:
        index, weight = self._part(index), self._part(weight)
        dense = weight.new_zeros((*index.shape[:-1], length))
        dense.scatter_add_(-1, index.clamp(min=0).to(torch.int64), weight.where(index >= 0, 0.0))
        return dense.reshape(-1, 1, length) if self.joint else dense.flatten(1, 2)

    def add_taken(self, dense: Tensor, index: Tensor, target: Tensor) -> None:
        """Add the entry of ``dense`` at each tap to that tap's place in ``target``."""
        index, target = self._part(index), self._part(target)
        dense = dense.reshape(*index.shape[:-1], dense.shape[-1])
        target += dense.gather(-1, index.clamp(min=0).to(torch.int64)).where(index >= 0, 0.0)

    def bins_to_rois(self, output: Tensor) -> Tensor:
        """(K, C, rows, columns) as (n, C, bins of y, bins of x)."""
        return output.permute(0, 2, 3, 1).reshape(-1, output.shape[1], 1, 1) if self.joint else output

    def rois_to_bins(self, part: Tensor) -> Tensor:
        """The inverse of :meth:`bins_to_rois`."""
        return part.view(-1, *self.bins, part.shape[1]).permute(0, 3, 1, 2) if self.joint else part

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """(image, RoIs of it) in pieces whose intermediate, rows of bins x channels x width, stays small."""
        size = max(1, CHUNK_ELEMENTS // (self.y.shape[1] * self.source.shape[1] * self.source.shape[3]))
        for image in range(self.source.shape[0]):
            mine = (self.rois == image).nonzero()[:, 0]
            if mine.numel():
                for k in mine.split(size):
                    yield image, k


def _window_cells(windows: Tensor) -> tuple[Tensor, Tensor]:
    first, last = windows[..., :1].to(torch.int64), windows[..., 1:].to(torch.int64)
    most = int((last - first).max()) if windows.numel() else 0
    cells = first + torch.arange(most, device=windows.device)
    inside = cells < last
    return cells.where(inside, 0), inside


def _plane_index(argmax: Tensor, batch: Tensor, shape: Shape, groups: Groups) -> Tensor:
    """Position in the contiguous feature tensor of each output's maximum; of its plane's first cell if it has none."""
    device = argmax.device
    c = torch.arange(argmax.shape[1], device=device)[:, None, None]
    i = torch.arange(argmax.shape[2], device=device)[:, None] * groups[0] // argmax.shape[2]
    j = torch.arange(argmax.shape[3], device=device) * groups[1] // argmax.shape[3]
    channel = (c * groups[0] + i) * groups[1] + j
    plane = batch[:, None, None, None] * shape[1] + channel
    return plane * (shape[2] * shape[3]) + argmax.clamp(min=0).to(torch.int64)
