"""Serial numba kernels for sliding windows over float32 maps (N, H, W, C), inner loops over channels.

A call does channels c0 .. c1 - 1 of one image; `windows` is (kernel, stride, padding), each (rows, columns). Outputs
are (N, OH, OW, C). A backward adds to ``out``, (N, H, W, C).
"""

import numpy as np

from detpool.ops.backends.cpu.compiling import compiled

TINY = np.float32(np.finfo(np.float32).tiny)
LOWEST = np.float32(-126)
"""Two to this power is the smallest that is not subnormal."""
LOG2_E = np.float32(np.log2(np.e))
ROOT_HALF_BITS = np.float32(np.sqrt(0.5)).view(np.int32)


@compiled
def _cells(windows, axis, position, length):
    """First and last + 1 cell of a window along an axis, within the map."""
    kernel, stride, padding = windows
    start = position * stride[axis] - padding[axis]
    return max(start, 0), min(start + kernel[axis], length)


@compiled
def _power_of_two(x):
    """2^x for x < 127 to 2e-7 of it: the best polynomial on -1/2 .. 1/2, which vectorises, as a library's does not."""
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
def _log_of_two(x):
    """log2(x) to 2e-7 of it or of 1, for x >= 0; at least 128 for infinity and NaN, at most -150 for 0."""
    small = x < TINY
    normal = np.float32(x * (np.float32(2**24) if small else np.float32(1)))
    # x = 2^exponent m with m from sqrt(1/2) to sqrt(2), and log2(m) a polynomial of s = (m - 1) / (m + 1).
    bits = np.int32(normal.view(np.int32) - ROOT_HALF_BITS)
    exponent = np.int32(bits >> np.int32(23))
    m = np.int32(np.int32(bits & np.int32(0x7FFFFF)) + ROOT_HALF_BITS).view(np.float32)
    s = (m - np.float32(1)) / (m + np.float32(1))
    square = s * s
    series = np.float32(0.431733016)
    series = series * square + np.float32(0.57671451)
    series = series * square + np.float32(0.961798846)
    series = series * square + np.float32(2.88539008)
    return np.float32(exponent) - (np.float32(24) if small else np.float32(0)) + s * series


@compiled
def _power(x, p):
    """x^p for x >= 0, but at least 2^-126 and at most 2^126, which it is for infinity and NaN if p >= 1."""
    exponent = p * _log_of_two(x)
    return _power_of_two(exponent if exponent < -LOWEST else -LOWEST)


@compiled
def _multiplied(x, p):
    """x^p for p in 0 .. 4."""
    odd = x if (p == 1) | (p == 3) else np.float32(1)
    return odd * (x * x if p >= 2 else np.float32(1)) * (x * x if p == 4 else np.float32(1))


@compiled
def _is_whole(p):
    """Whether powers p and p - 1 are multiplied out."""
    return (p == 1) | (p == 2) | (p == 3) | (p == 4)


@compiled
def _reach(p):
    """Norms from 1 / this to this need no scale: powers of values neither overflow nor vanish, and are precise."""
    # The error of a logarithm is relative to itself.
    return np.float32(2) ** (np.float32(60) / p if _is_whole(p) else min(np.float32(60) / p, np.float32(8)))


@compiled
def lp(x, image, c0, c1, windows, p, pooled):
    """``mean(|v|^p)^(1/p)``, p a float32: powers of each cell once for a row of windows, then their sums.

    A window whose sum of powers is beyond reach, or not a number, is computed relative to its largest magnitude.
    """
    width, whole = x.shape[2], _is_whole(p)
    sums = np.empty((width, c1 - c0), np.float32)
    high = _reach(p) ** p
    low = np.float32(1) / high
    for i in range(pooled.shape[1]):
        y0, y1 = _cells(windows, 0, i, x.shape[1])
        sums[:] = 0
        for y in range(y0, y1):
            for z in range(width):
                values, target = x[image, y, z, c0:c1], sums[z]
                # Powers before the choice, not in it, so that the loops vectorise.
                if whole:
                    for c in range(c1 - c0):
                        size = abs(values[c])
                        power = _multiplied(size, p)
                        target[c] += TINY if (power < TINY) & (size > 0) else power
                else:
                    for c in range(c1 - c0):
                        size = abs(values[c])
                        power = _power(size, p)
                        target[c] += np.float32(0) if size == 0 else power
        for j in range(pooled.shape[2]):
            x0, x1 = _cells(windows, 1, j, width)
            total = pooled[image, i, j, c0:c1]
            for c in range(c1 - c0):
                total[c] = sums[x0, c]
            for z in range(x0 + 1, x1):
                for c in range(c1 - c0):
                    total[c] += sums[z, c]
            within = 0
            for c in range(c1 - c0):
                within += (total[c] == 0) | ((total[c] >= low) & (total[c] <= high))
            if within == c1 - c0:
                _take_roots(p, np.float32(1) / np.float32((y1 - y0) * (x1 - x0)), total)
            else:
                _scaled_lp(x[image, y0:y1, x0:x1, c0:c1], p, total)


@compiled
def _take_roots(p, share, totals):
    """``totals`` become ``(totals share)^(1/p)``."""
    inverse = np.float32(1) / p
    if p == 1:
        for c in range(len(totals)):
            totals[c] *= share
    elif p == 2:
        for c in range(len(totals)):
            totals[c] = np.sqrt(totals[c] * share)
    else:
        for c in range(len(totals)):
            root = _power(totals[c] * share, inverse)
            totals[c] = np.float32(0) if totals[c] == 0 else root


@compiled
def _scaled_lp(cells, p, pooled):
    """:func:`lp` of one window (rows, columns, channels), relative to its largest magnitudes."""
    largest = np.zeros(len(pooled), np.int32)
    scale = np.empty(len(pooled), np.float32)
    for y in range(cells.shape[0]):
        for z in range(cells.shape[1]):
            for c in range(len(pooled)):
                # In the order of their bits, NaN is above infinity.
                bits = np.float32(abs(cells[y, z, c])).view(np.int32)
                largest[c] = bits if bits > largest[c] else largest[c]
    for c in range(len(pooled)):
        size = np.int32(largest[c]).view(np.float32)
        scale[c] = np.float32(1) if size == 0 else size
        pooled[c] = 0
    for y in range(cells.shape[0]):
        for z in range(cells.shape[1]):
            if _is_whole(p):
                for c in range(len(pooled)):
                    pooled[c] += _multiplied(abs(cells[y, z, c]) / scale[c], p)
            else:
                for c in range(len(pooled)):
                    pooled[c] += _power(abs(cells[y, z, c]) / scale[c], p)
    _take_roots(p, np.float32(1) / np.float32(cells.shape[0] * cells.shape[1]), pooled)
    for c in range(len(pooled)):
        size = np.int32(largest[c]).view(np.float32)
        # 0, infinity and NaN are their own mean.
        pooled[c] = pooled[c] * scale[c] if (size > 0) & (size < np.float32(np.inf)) else size


@compiled
def _sign(x):
    return np.float32(0) if x == 0 else np.float32(1) if x > 0 else np.float32(-1)


@compiled
def lp_backward(x, pooled, grad, image, c0, c1, windows, p, out):
    """``grad (|v| / pooled)^(p - 1) sign(v) / cells``, the power of v once for a row of windows."""
    width, whole, below = x.shape[2], _is_whole(p), p - np.float32(1)
    factors = np.empty((width, c1 - c0), np.float32)
    factor = np.empty(c1 - c0, np.float32)
    high = _reach(p)
    low = np.float32(1) / high
    # No cell of a window within reach is larger; of others, factors are 0 and powers must not be infinite.
    limit = np.float32(2) ** (np.float32(100) / p)
    for i in range(grad.shape[1]):
        y0, y1 = _cells(windows, 0, i, x.shape[1])
        factors[:] = 0
        for j in range(grad.shape[2]):
            x0, x1 = _cells(windows, 1, j, width)
            share = np.float32(1) / np.float32((y1 - y0) * (x1 - x0))
            norms, grads = pooled[image, i, j, c0:c1], grad[image, i, j, c0:c1]
            within = 0
            for c in range(c1 - c0):
                within += (norms[c] == 0) | ((norms[c] >= low) & (norms[c] <= high))
            if within == c1 - c0:
                _divide(grads, norms, p, share, factor)
                for z in range(x0, x1):
                    for c in range(c1 - c0):
                        factors[z, c] += factor[c]
            else:
                cells = (image, slice(y0, y1), slice(x0, x1), slice(c0, c1))
                _scaled_lp_backward(x[cells], norms, grads, p, share, out[cells])
        for y in range(y0, y1):
            for z in range(width):
                values, target, sums = x[image, y, z, c0:c1], out[image, y, z, c0:c1], factors[z]
                if whole:
                    for c in range(c1 - c0):
                        size = abs(values[c])
                        power = _multiplied(size if size < limit else limit, below)
                        target[c] += sums[c] * _sign(values[c]) * power
                else:
                    for c in range(c1 - c0):
                        size = abs(values[c])
                        # The power of 0 is not used; it would make subnormal products, which take longer. That of 1 is
                        # taken: one of the limit times the sums may overflow before the sign of 0 multiplies it.
                        bounded = size if size < limit else limit
                        power = _power(bounded if size > 0 else np.float32(1), below)
                        target[c] += sums[c] * _sign(values[c]) * power


@compiled
def _divide(grads, norms, p, share, factor):
    """``grad share / norm^(p - 1)``, 0 for a norm of 0."""
    below = p - np.float32(1)
    if _is_whole(p):
        for c in range(len(factor)):
            ratio = grads[c] * share / _multiplied(norms[c], below)
            factor[c] = np.float32(0) if norms[c] == 0 else ratio
    else:
        for c in range(len(factor)):
            ratio = grads[c] * share * _power(norms[c], -below)
            factor[c] = np.float32(0) if norms[c] == 0 else ratio


@compiled
def _scaled_lp_backward(cells, norms, grads, p, share, out):
    """:func:`lp_backward` of one window (rows, columns, channels): no power above ``1 / share``."""
    below = p - np.float32(1)
    for y in range(cells.shape[0]):
        for z in range(cells.shape[1]):
            values, target = cells[y, z], out[y, z]
            if _is_whole(p):
                for c in range(len(norms)):
                    ratio = abs(values[c]) / (np.float32(1) if norms[c] == 0 else norms[c])
                    target[c] += grads[c] * share * _sign(values[c]) * _multiplied(ratio, below)
            else:
                for c in range(len(norms)):
                    ratio = abs(values[c]) / (np.float32(1) if norms[c] == 0 else norms[c])
                    power = _power(ratio, below)
                    target[c] += grads[c] * share * _sign(values[c]) * (power if ratio == ratio else ratio)


@compiled
def global_lp(x, first, last, p, pooled):
    """:func:`lp` of rows first .. last - 1 of contiguous x (rows, cells), relative to their largest magnitudes."""
    for row in range(first, last):
        values = x[row]
        bits = np.int32(0)
        for k in range(len(values)):
            size = np.float32(abs(values[k])).view(np.int32)
            bits = size if size > bits else bits
        largest = np.int32(bits).view(np.float32)
        if not (largest > 0) & (largest < np.float32(np.inf)):
            pooled[row] = largest  # 0, infinity and NaN are their own mean
            continue
        total = np.float32(0)
        if _is_whole(p):
            for k in range(len(values)):
                total += _multiplied(abs(values[k]) / largest, p)
        else:
            for k in range(len(values)):
                total += _power(abs(values[k]) / largest, p)
        pooled[row] = total
        _take_roots(p, np.float32(1) / np.float32(len(values)), pooled[row : row + 1])
        pooled[row] *= largest


@compiled
def global_lp_backward(x, first, last, p, pooled, grad, out):
    """:func:`lp_backward` of :func:`global_lp`; ``out`` is written, not added to."""
    below = p - np.float32(1)
    for row in range(first, last):
        values, target = x[row], out[row]
        norm = np.float32(1) if pooled[row] == 0 else pooled[row]
        factor = grad[row] / np.float32(len(values))
        if _is_whole(p):
            for k in range(len(values)):
                target[k] = factor * _sign(values[k]) * _multiplied(abs(values[k]) / norm, below)
        else:
            for k in range(len(values)):
                ratio = abs(values[k]) / norm
                power = _power(np.float32(1) if ratio == 0 else ratio, below)
                target[k] = factor * _sign(values[k]) * (power if ratio == ratio else ratio)


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
