"""Serial numba kernels for sliding windows over float32 maps (N, H, W, C), inner loops over channels.

A call does channels c0 .. c1 - 1 of one image; `windows` is (kernel, stride, padding), each (rows, columns). Outputs
are (N, OH, OW, C). A backward adds to ``out``, (N, H, W, C).
"""

import numpy as np

from detpool.ops.backends.cpu_kernels import compiled

TINY = np.float32(np.finfo(np.float32).tiny)
LOWEST = np.float32(-126)
"""Two to this power is the smallest that is not subnormal."""
LOG2_E = np.float32(np.log2(np.e))


@compiled
def _cells(windows, axis, position, length):
    """First and last + 1 cell of a window along an axis, within the map."""
    kernel, stride, padding = windows
    start = position * stride[axis] - padding[axis]
    return max(start, 0), min(start + kernel[axis], length)


@compiled
def _power_of_two(x):
    """2^x for x <= 0 to 2e-7 of it: the best polynomial on -1/2 .. 1/2, which vectorises, as a library's does not."""
    x = x if x > LOWEST else LOWEST
    whole = np.floor(x + np.float32(0.5))
    rest = x - whole
    series = np.float32(1.32647203e-3)
    series = series * rest + np.float32(9.67151299e-3)
    series = series * rest + np.float32(5.55073359e-2)
    series = series * rest + np.float32(2.40222424e-1)
    series = series * rest + np.float32(6.93147004e-1)
    return (series * rest + np.float32(1)) * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(
        np.float32
    )


@compiled
def _hashed(number):
    """32 bits that look random, one to one (Wellons' lowbias32)."""
    number = np.uint32(number ^ np.uint32(number >> np.uint32(16)))
    number = np.uint32(number * np.uint32(0x7FEB352D))
    number = np.uint32(number ^ np.uint32(number >> np.uint32(15)))
    number = np.uint32(number * np.uint32(0x846CA68B))
    return np.uint32(number ^ np.uint32(number >> np.uint32(16)))


@compiled
def _power_below(ratio, p):
    """ratio^(p - 1) for p in 1 .. 4."""
    return (ratio if p % 2 == 0 else np.float32(1)) * (ratio * ratio if p > 2 else np.float32(1))


@compiled
def lp(x, image, c0, c1, windows, p, mean, scale):
    """``mean``: of ``(|v| / scale)^p``; ``scale``: the largest magnitude of each window, 1 if that is infinite."""
    inverse = np.empty(c1 - c0, np.float32)
    for i in range(mean.shape[1]):
        y0, y1 = _cells(windows, 0, i, x.shape[1])
        for j in range(mean.shape[2]):
            x0, x1 = _cells(windows, 1, j, x.shape[2])
            total, largest = mean[image, i, j, c0:c1], scale[image, i, j, c0:c1]
            for c in range(c1 - c0):
                largest[c] = TINY
                total[c] = 0
            for y in range(y0, y1):
                for z in range(x0, x1):
                    values = x[image, y, z, c0:c1]
                    for c in range(c1 - c0):
                        size = abs(values[c])
                        largest[c] = size if size > largest[c] else largest[c]
            for c in range(c1 - c0):
                largest[c] = largest[c] if largest[c] < np.float32(np.inf) else np.float32(1)
                inverse[c] = np.float32(1) / largest[c]
            for y in range(y0, y1):
                for z in range(x0, x1):
                    values = x[image, y, z, c0:c1]
                    for c in range(c1 - c0):
                        ratio = abs(values[c]) * inverse[c]
                        total[c] += ratio * _power_below(ratio, p)
            share = np.float32(1) / np.float32((y1 - y0) * (x1 - x0))
            for c in range(c1 - c0):
                total[c] *= share


@compiled
def lp_backward(x, pooled, grad, image, c0, c1, windows, p, out):
    """``grad (|v| / pooled)^(p - 1) sign(v) / cells``: at most ``cells^(-1/p)``, so that nothing overflows."""
    factor = np.empty(c1 - c0, np.float32)
    inverse = np.empty(c1 - c0, np.float32)
    for i in range(grad.shape[1]):
        y0, y1 = _cells(windows, 0, i, x.shape[1])
        for j in range(grad.shape[2]):
            x0, x1 = _cells(windows, 1, j, x.shape[2])
            share = np.float32(1) / np.float32((y1 - y0) * (x1 - x0))
            norms, grads = pooled[image, i, j, c0:c1], grad[image, i, j, c0:c1]
            for c in range(c1 - c0):
                factor[c] = grads[c] * share
                inverse[c] = np.float32(1) / (TINY if norms[c] < TINY else norms[c])
            for y in range(y0, y1):
                for z in range(x0, x1):
                    values, target = x[image, y, z, c0:c1], out[image, y, z, c0:c1]
                    for c in range(c1 - c0):
                        power = _power_below(abs(values[c]) * inverse[c], p)
                        sign = np.float32(0) if values[c] == 0 else np.float32(1) if values[c] > 0 else np.float32(-1)
                        target[c] += factor[c] * sign * power


@compiled
def softmax(x, image, c0, c1, windows, beta, pooled, largest, total):
    """``pooled``; the ``largest`` u = v sign(beta) of each window; and the ``total`` of e^(|beta| (u - largest))."""
    sign = np.float32(1) if beta >= 0 else np.float32(-1)
    steepness = abs(beta) * LOG2_E
    for i in range(pooled.shape[1]):
        y0, y1 = _cells(windows, 0, i, x.shape[1])
        for j in range(pooled.shape[2]):
            x0, x1 = _cells(windows, 1, j, x.shape[2])
            sums, weights = pooled[image, i, j, c0:c1], total[image, i, j, c0:c1]
            shift = largest[image, i, j, c0:c1]
            for c in range(c1 - c0):
                shift[c] = np.float32(-np.inf)
                sums[c] = 0
                weights[c] = 0
            for y in range(y0, y1):
                for z in range(x0, x1):
                    values = x[image, y, z, c0:c1]
                    for c in range(c1 - c0):
                        value = sign * values[c]
                        shift[c] = value if value > shift[c] else shift[c]
            for y in range(y0, y1):
                for z in range(x0, x1):
                    values = x[image, y, z, c0:c1]
                    for c in range(c1 - c0):
                        weight = _power_of_two(steepness * (sign * values[c] - shift[c]))
                        weights[c] += weight
                        sums[c] += weight * values[c]
            for c in range(c1 - c0):
                sums[c] /= weights[c]


@compiled
def softmax_backward(x, pooled, largest, total, grad, image, c0, c1, windows, beta, out):
    """``grad w (1 + beta (v - pooled))``, w the weight of v in its window."""
    sign = np.float32(1) if beta >= 0 else np.float32(-1)
    steepness = abs(beta) * LOG2_E
    factor = np.empty(c1 - c0, np.float32)
    for i in range(grad.shape[1]):
        y0, y1 = _cells(windows, 0, i, x.shape[1])
        for j in range(grad.shape[2]):
            x0, x1 = _cells(windows, 1, j, x.shape[2])
            mean, shift = pooled[image, i, j, c0:c1], largest[image, i, j, c0:c1]
            grads, weights = grad[image, i, j, c0:c1], total[image, i, j, c0:c1]
            for c in range(c1 - c0):
                factor[c] = grads[c] / weights[c]
            for y in range(y0, y1):
                for z in range(x0, x1):
                    values, target = x[image, y, z, c0:c1], out[image, y, z, c0:c1]
                    for c in range(c1 - c0):
                        weight = factor[c] * _power_of_two(steepness * (sign * values[c] - shift[c]))
                        target[c] += weight * (np.float32(1) + beta * (values[c] - mean[c]))


@compiled
def expectation(x, image, c0, c1, windows, pooled, total):
    """``pooled``: ``sum v^2 / sum v`` over each window, negative values as 0; ``total``: the divisor."""
    for i in range(pooled.shape[1]):
        y0, y1 = _cells(windows, 0, i, x.shape[1])
        for j in range(pooled.shape[2]):
            x0, x1 = _cells(windows, 1, j, x.shape[2])
            squares, sums = pooled[image, i, j, c0:c1], total[image, i, j, c0:c1]
            for c in range(c1 - c0):
                squares[c] = 0
                sums[c] = 0
            for y in range(y0, y1):
                for z in range(x0, x1):
                    values = x[image, y, z, c0:c1]
                    for c in range(c1 - c0):
                        value = np.float32(0) if values[c] < 0 else values[c]
                        sums[c] += value
                        squares[c] += value * value
            for c in range(c1 - c0):
                squares[c] = squares[c] / sums[c] if sums[c] != 0 else np.float32(0)


@compiled
def expectation_backward(x, pooled, total, grad, image, c0, c1, windows, out):
    """``grad (2 v - pooled) / total`` for positive v."""
    factor = np.empty(c1 - c0, np.float32)
    for i in range(grad.shape[1]):
        y0, y1 = _cells(windows, 0, i, x.shape[1])
        for j in range(grad.shape[2]):
            x0, x1 = _cells(windows, 1, j, x.shape[2])
            mean, sums, grads = pooled[image, i, j, c0:c1], total[image, i, j, c0:c1], grad[image, i, j, c0:c1]
            for c in range(c1 - c0):
                factor[c] = grads[c] / sums[c] if sums[c] != 0 else np.float32(0)
            for y in range(y0, y1):
                for z in range(x0, x1):
                    values, target = x[image, y, z, c0:c1], out[image, y, z, c0:c1]
                    for c in range(c1 - c0):
                        slope = np.float32(2) * values[c] - mean[c] if values[c] > 0 else np.float32(0)
                        target[c] += factor[c] * slope


@compiled
def stochastic(x, image, c0, c1, windows, seed, pooled, drawn):
    """A value of each window in proportion to itself, negative ones as 0; ``drawn``: its cell ``y W + x``.

    The draw of a window depends on ``seed`` (two 32-bit numbers) and on its place among all windows alone.
    """
    width = x.shape[2]
    rest = np.empty(c1 - c0, np.float32)
    for i in range(pooled.shape[1]):
        y0, y1 = _cells(windows, 0, i, x.shape[1])
        for j in range(pooled.shape[2]):
            x0, x1 = _cells(windows, 1, j, width)
            place = np.uint32(((image * pooled.shape[1] + i) * pooled.shape[2] + j) * x.shape[3] + c0)
            best, where = pooled[image, i, j, c0:c1], drawn[image, i, j, c0:c1]
            for c in range(c1 - c0):
                rest[c] = 0
                best[c] = 0
                where[c] = y0 * width + x0
            for y in range(y0, y1):
                for z in range(x0, x1):
                    values = x[image, y, z, c0:c1]
                    for c in range(c1 - c0):
                        rest[c] += np.float32(0) if values[c] < 0 else values[c]
            for c in range(c1 - c0):
                bits = _hashed(np.uint32(_hashed(np.uint32(place + np.uint32(c)) ^ seed[0]) + seed[1]))
                # Of (0, total]: summed in the same order below, so that it is always reached, by a weight above 0.
                share = np.float32(np.int32(bits >> np.uint32(8)) + np.int32(1)) * np.float32(2**-24)
                best[c] = rest[c]
                rest[c] *= share
            for c in range(c1 - c0):
                # A total that is NaN stays the result.
                best[c] = best[c] if best[c] != best[c] else np.float32(0)
            _find_drawn(x, image, c0, c1, y0, y1, x0, x1, rest, best, where)


@compiled
def _find_drawn(x, image, c0, c1, y0, y1, x0, x1, draw, best, where):
    """The first cell of a window up to which the values sum to ``draw``."""
    before = np.zeros(c1 - c0, np.float32)
    for y in range(y0, y1):
        for z in range(x0, x1):
            cell = np.int32(y * x.shape[2] + z)
            values = x[image, y, z, c0:c1]
            for c in range(c1 - c0):
                value = np.float32(0) if values[c] < 0 else values[c]
                here = (before[c] < draw[c]) & (before[c] + value >= draw[c])
                best[c] = value if here else best[c]
                where[c] = cell if here else where[c]
                before[c] += value


@compiled
def scatter(x, drawn, grad, image, c0, c1, out):
    """``grad`` to the cells ``drawn`` whose values are positive."""
    width = x.shape[2]
    for i in range(grad.shape[1]):
        for j in range(grad.shape[2]):
            grads, where = grad[image, i, j, c0:c1], drawn[image, i, j, c0:c1]
            for c in range(c1 - c0):
                y, z = where[c] // width, where[c] % width
                if x[image, y, z, c0 + c] > 0:
                    out[image, y, z, c0 + c] += grads[c]
