"""Where kernels read and write: offsets in features, gradients and pooled features, and masks of channels."""

import triton
import triton.language as tl


@triton.jit
def offsets_of(c, stride, WIDE: tl.constexpr):
    """``c * stride``, in 64 bits if an image or a pooled RoI needs them."""
    return tl.cast(c, tl.int64) * stride if WIDE else tl.cast(c, tl.int32) * stride


# The compiler does not see that sums of products of strides are multiples of ALIGNED. The hint belongs to the operation
# that it is given on, so that has to stand in the same function.


@triton.jit
def image_offset(image, stride, ALIGNED: tl.constexpr):
    """Offset of an image."""
    offset = image * stride
    return tl.multiple_of(offset, ALIGNED) if ALIGNED > 1 else offset


@triton.jit
def along(position, stride, ALIGNED: tl.constexpr, WIDE: tl.constexpr):
    """Offset of a row or a column, or of several, in an image."""
    offset = tl.cast(position, tl.int64 if WIDE else tl.int32) * stride
    return tl.multiple_of(offset, ALIGNED) if ALIGNED > 1 else offset


@triton.jit
def cell_offset(y, x, stride_h, stride_w, ALIGNED: tl.constexpr, WIDE: tl.constexpr):
    """Offset of a cell, or of several, in an image."""
    return along(y, stride_h, ALIGNED, WIDE) + along(x, stride_w, ALIGNED, WIDE)


@triton.jit
def pooled_offset(k, i, j, stride_k, stride_h, stride_w, ALIGNED: tl.constexpr):
    """Offset of bin (i, j) of RoI k."""
    offset = k * stride_k + i * stride_h + j * stride_w
    return tl.multiple_of(offset, ALIGNED) if ALIGNED > 1 else offset


@triton.jit
def channel_mask(c, channels, ALIGNED: tl.constexpr):
    """``c < channels``, the same for ALIGNED neighbours, or they could not be loaded together."""
    mask = c < channels
    return tl.max_constancy(mask, ALIGNED) if ALIGNED > 1 else mask


@triton.jit
def group_offset(
    c, u, v, stride_c, stride_g, GH: tl.constexpr, GW: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr
):
    """Offsets of the channels ``c`` of group (u, v)."""
    offset = offsets_of(c, stride_c, WIDE)
    if GH * GW > 1:
        offset += along(u * GW + v, stride_g, ALIGNED, WIDE)
    return offset


@triton.jit
def plane_offset(
    c,
    i,
    j,
    stride_c,
    stride_g,
    PH: tl.constexpr,
    PW: tl.constexpr,
    GH: tl.constexpr,
    GW: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Offsets of the channels ``c`` of the group that bin (i, j) reads."""
    return group_offset(c, i * GH // PH, j * GW // PW, stride_c, stride_g, GH, GW, ALIGNED, WIDE)
