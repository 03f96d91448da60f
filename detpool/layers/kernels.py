"""Serial numba kernels for sliding windows over float32 maps (N, H, W, C), inner loops over channels.

A call computes channels c0 .. c1 - 1 of one image. ``windows`` is (kernel, stride, padding), each (rows, columns).
Outputs are (N, OH, OW, C). A backward kernel adds to ``out``, (N, H, W, C).
"""

import numpy as np

from detpool.ops.backends.cpu.compiling import compiled, kernel

TINY = np.float32(np.finfo(np.float32).tiny)
LOWEST = np.float32(-126)  # two to this power is the smallest normal number
LOG2_E = np.float32(np.log2(np.e))
ROOT_HALF_BITS = np.float32(np.sqrt(0.5)).view(np.int32)


@compiled
def _window(windows, i, j, x):
    """First row and column of a window within the map, and how many there are."""
    (rows, columns), (down, right), (above, left) = windows
    y, z = i * down - above, j * right - left
    top, start = max(y, 0), max(z, 0)
    return top, start, min(y + rows, x.shape[1]) - top, min(z + columns, x.shape[2]) - start


@compiled
def _power_of_two(x):
    """2^x for x < 127 to 2e-7 of it: the best polynomial on -1/2 .. 1/2, which vectorizes, as a library's does not."""
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
def _power(x, p, whole):
    """x^p for x >= 0, p in 0 .. 4 if ``whole``; else at least 2^-126 and at most 2^126 unless x is 0 or infinite."""
    if whole:
        odd = x if (p == 1) | (p == 3) else np.float32(1)
        return odd * (x * x if p >= 2 else np.float32(1)) * (x * x if p == 4 else np.float32(1))
    exponent = p * _log_of_two(x)
    power = _power_of_two(exponent if exponent < -LOWEST else -LOWEST)
    return power if (x > 0) & (x < np.float32(np.inf)) else x


@compiled
def _add_powers(values, scale, p, whole, sums):
    if whole:  # told apart once, so that the loops vectorize
        for c in range(len(sums)):
            power = _power(abs(values[c]) / scale[c], p, True)
            sums[c] += TINY if (power < TINY) & (values[c] != 0) else power
    else:
        for c in range(len(sums)):
            sums[c] += _power(abs(values[c]) / scale[c], p, False)


@kernel
def lp(x, image, c0, c1, windows, p, pooled):
    """``mean(|v|^p)^(1/p)``: powers of each cell once for a row of windows, then their sums.

    A window whose sum of powers is imprecise, or not finite, is computed again relative to its largest magnitudes.
    """
    p, width = np.float32(p), x.shape[2]
    whole = (p == 1) | (p == 2) | (p == 3) | (p == 4)
    sums, scale = np.empty((width, c1 - c0), np.float32), np.ones(c1 - c0, np.float32)
    # The error of a logarithm is relative to itself.
    high = np.float32(2) ** (np.float32(60) if whole else min(np.float32(60), np.float32(8) * p))
    for i in range(pooled.shape[1]):
        top, _, rows, _ = _window(windows, i, 0, x)
        sums[:] = 0
        for y, z in np.ndindex(rows, width):
            _add_powers(x[image, top + y, z, c0:c1], scale, p, whole, sums[z])
        for j in range(pooled.shape[2]):
            _, left, _, columns = _window(windows, i, j, x)
            mean = pooled[image, i, j, c0:c1]
            mean[:] = 0
            for z in range(left, left + columns):
                for c in range(c1 - c0):
                    mean[c] += sums[z, c]
            within = 0
            for c in range(c1 - c0):
                within += (mean[c] == 0) | ((mean[c] >= np.float32(1) / high) & (mean[c] <= high))
            if within < c1 - c0:
                scale[:] = 0
                mean[:] = 0
                for y, z in np.ndindex(rows, columns):
                    values = x[image, top + y, left + z, c0:c1]
                    for c in range(c1 - c0):
                        size = abs(values[c])
                        scale[c] = size if size > scale[c] else scale[c]
                for c in range(c1 - c0):
                    scale[c] = scale[c] if (scale[c] > 0) & (scale[c] < np.float32(np.inf)) else np.float32(1)
                for y, z in np.ndindex(rows, columns):
                    _add_powers(x[image, top + y, left + z, c0:c1], scale, p, whole, mean)
            share, root = np.float32(1) / np.float32(rows * columns), np.float32(1) / p
            for c in range(c1 - c0):
                mean[c] *= share
                mean[c] = scale[c] * (np.sqrt(mean[c]) if p == 2 else _power(mean[c], root, p == 1))
            scale[:] = 1


@kernel
def lp_backward(x, pooled, grad, image, c0, c1, windows, p, out):
    """``grad (|v| / pooled)^(p - 1) sign(v) / cells``."""
    whole, below = (p == 1) | (p == 2) | (p == 3) | (p == 4), np.float32(p - 1)
    for i, j in np.ndindex(grad.shape[1], grad.shape[2]):
        top, left, rows, columns = _window(windows, i, j, x)
        share = np.float32(1) / np.float32(rows * columns)
        norms, grads = pooled[image, i, j, c0:c1], grad[image, i, j, c0:c1]
        for y, z in np.ndindex(rows, columns):
            values, target = x[image, top + y, left + z, c0:c1], out[image, top + y, left + z, c0:c1]
            for c in range(c1 - c0):
                ratio = abs(values[c]) / (np.float32(1) if norms[c] == 0 else norms[c])
                sign = np.float32(values[c] > 0) - np.float32(values[c] < 0)
                target[c] += grads[c] * share * sign * _power(ratio, below, whole)


@kernel
def weighted(x, image, c0, c1, windows, soft, beta, pooled, total, largest):
    """``sum v w / sum w`` of each window, 0 without weights; w is ``e^(beta v)`` if ``soft``, else v, negative ones 0.

    ``total`` is the divisor, for which exponents are relative to the ``largest`` v sign(beta).
    """
    sign, steepness = np.float32(1 if beta >= 0 else -1), np.float32(abs(beta)) * LOG2_E
    for i, j in np.ndindex(pooled.shape[1], pooled.shape[2]):
        top, left, rows, columns = _window(windows, i, j, x)
        sums, weights = pooled[image, i, j, c0:c1], total[image, i, j, c0:c1]
        shift = largest[image, i, j, c0:c1]
        sums[:] = 0
        weights[:] = 0
        shift[:] = -np.inf
        for y, z in np.ndindex(rows if soft else 0, columns):
            values = x[image, top + y, left + z, c0:c1]
            for c in range(c1 - c0):
                value = sign * values[c]
                shift[c] = value if value > shift[c] else shift[c]
        for y, z in np.ndindex(rows, columns):
            values = x[image, top + y, left + z, c0:c1]
            if soft:
                for c in range(c1 - c0):
                    weight = _power_of_two(steepness * (sign * values[c] - shift[c]))
                    weights[c] += weight
                    sums[c] += weight * values[c]
            else:
                for c in range(c1 - c0):
                    weight = np.float32(0) if values[c] < 0 else values[c]
                    weights[c] += weight
                    sums[c] += weight * weight
        for c in range(c1 - c0):
            sums[c] = sums[c] / weights[c] if weights[c] != 0 else np.float32(0)


@kernel
def weighted_backward(x, pooled, total, largest, grad, image, c0, c1, windows, soft, beta, out):
    """``grad (w + (v - pooled) dw / dv) / total``."""
    sign, steepness = np.float32(1 if beta >= 0 else -1), np.float32(abs(beta)) * LOG2_E
    factor = np.empty(c1 - c0, np.float32)
    for i, j in np.ndindex(grad.shape[1], grad.shape[2]):
        top, left, rows, columns = _window(windows, i, j, x)
        mean, shift = pooled[image, i, j, c0:c1], largest[image, i, j, c0:c1]
        grads, weights = grad[image, i, j, c0:c1], total[image, i, j, c0:c1]
        for c in range(c1 - c0):
            factor[c] = grads[c] / weights[c] if weights[c] != 0 else np.float32(0)
        for y, z in np.ndindex(rows, columns):
            values, target = x[image, top + y, left + z, c0:c1], out[image, top + y, left + z, c0:c1]
            if soft:
                for c in range(c1 - c0):
                    weight = factor[c] * _power_of_two(steepness * (sign * values[c] - shift[c]))
                    target[c] += weight * (np.float32(1) + np.float32(beta) * (values[c] - mean[c]))
            else:
                for c in range(c1 - c0):
                    slope = np.float32(2) * values[c] - mean[c] if values[c] > 0 else np.float32(0)
                    target[c] += factor[c] * slope


@compiled
def _hashed(number):
    """32 bits that look random, one to one (Wellons' lowbias32)."""
    number = np.uint32(number ^ np.uint32(number >> np.uint32(16)))
    number = np.uint32(number * np.uint32(0x7FEB352D))
    number = np.uint32(number ^ np.uint32(number >> np.uint32(15)))
    number = np.uint32(number * np.uint32(0x846CA68B))
    return np.uint32(number ^ np.uint32(number >> np.uint32(16)))


@kernel
def draw(x, image, c0, c1, windows, seed, drawn, place):
    """A value of each window in proportion to itself, negative ones as 0; ``place``: its cell ``y W + x``.

    What a window draws depends on ``seed`` (two 32-bit numbers) and on its position among all windows alone.
    """
    until, before = np.empty(c1 - c0, np.float32), np.empty(c1 - c0, np.float32)
    for i, j in np.ndindex(drawn.shape[1], drawn.shape[2]):
        top, left, rows, columns = _window(windows, i, j, x)
        number = np.uint32(((image * drawn.shape[1] + i) * drawn.shape[2] + j) * x.shape[3] + c0)
        best, where = drawn[image, i, j, c0:c1], place[image, i, j, c0:c1]
        until[:] = 0
        before[:] = 0
        where[:] = top * x.shape[2] + left
        for y, z in np.ndindex(rows, columns):
            values = x[image, top + y, left + z, c0:c1]
            for c in range(c1 - c0):
                until[c] += np.float32(0) if values[c] < 0 else values[c]
        for c in range(c1 - c0):
            bits = _hashed(np.uint32(_hashed(np.uint32(number + np.uint32(c)) ^ seed[0]) + seed[1]))
            # Of (0, 1]: summed in the same order below, so that it is always reached, by a weight above 0.
            share = np.float32(np.int32(bits >> np.uint32(8)) + np.int32(1)) * np.float32(2**-24)
            # A total that is NaN stays the result.
            best[c] = until[c] if until[c] != until[c] else np.float32(0)
            until[c] *= share
        for y, z in np.ndindex(rows, columns):
            cell, values = (top + y) * x.shape[2] + left + z, x[image, top + y, left + z, c0:c1]
            for c in range(c1 - c0):
                value = np.float32(0) if values[c] < 0 else values[c]
                here = (before[c] < until[c]) & (before[c] + value >= until[c])
                best[c] = value if here else best[c]
                where[c] = cell if here else where[c]
                before[c] += value
