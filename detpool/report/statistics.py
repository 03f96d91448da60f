"""Differences between configurations: what of them is beyond chance, of seeds and of images.

A difference has two sources of chance. With other *seeds* the trainings would have ended elsewhere; with other *images*
the same detectors would have been judged otherwise, all of them alike or each in its own way. Of S pairs of runs that
share a seed, with differences d_s, and of resamples r of the images, the same for all runs, in which they are d_sr:

- the seeds alone: Student's t interval of the d_s, paired (S - 1 degrees of freedom);
- the images alone: the percentile bootstrap of the mean over s of d_sr (Efron and Tibshirani, An introduction to the
  bootstrap, 1993, chapter 13);
- both: seeds and images are crossed, since all seeds are judged on the same images. With A = var(d_s) / S, which
  holds what images do to each seed in its own way, and C, the mean covariance over r of two seeds, what they do to all
  alike, the variance of the mean is A + C, or that of the images alone, V, if it is larger by chance. The interval is
  Student's t with the degrees of freedom of Welch and Satterthwaite, (S - 1) (variance / A)^2. Without images it is
  the first, and with seeds that agree it is that of the images.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import nct, studentized_range, t

RESAMPLES = 1000
LEVEL = 0.05
"""Of tests; 1 - this is that of intervals."""
POWER = 0.8
GAIN = 0.01
"""The difference that `seeds_needed` and `images_needed` are about: one point."""
_MOST_SEEDS, _MOST_IMAGES = 1000, 10_000_000


@dataclass(frozen=True)
class Sample:
    """A number of each run of a configuration, or a difference of such numbers.

    Attributes:
        values: by seed; NaN where it is unknown.
        resampled: by seed, a column for each resample of the images; without a row, or NaN, where it is unknown.
        image_ids: the images that were resampled.
    """

    values: pd.Series
    resampled: pd.DataFrame = field(default_factory=pd.DataFrame)
    image_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __sub__(self, other: Sample) -> Sample:
        if not np.array_equal(self.image_ids, other.image_ids):
            return Sample(self.values - other.values)
        return Sample(self.values - other.values, self.resampled - other.resampled, self.image_ids)


class Interval(NamedTuple):
    """NaN if there is none."""

    low: float = math.nan
    high: float = math.nan

    @property
    def is_known(self) -> bool:
        return not math.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


_UNKNOWN = Interval()


@dataclass(frozen=True)
class Difference:
    """Mean of the differences of pairs of runs, and 95 % intervals of it.

    Attributes:
        pairs: how many seeds both have.
        difference: the mean.
        seeds, images, both: intervals, as above.
        p: two-sided, of no difference: of seeds and images together or, where images are unknown, of seeds alone.
        adjusted: the same, corrected for several comparisons (`adjust`).
        variance: A, V and C, as above; NaN where unknown.
        images_drawn: how many images were resampled.
    """

    pairs: int
    difference: float
    seeds: Interval = _UNKNOWN
    images: Interval = _UNKNOWN
    both: Interval = _UNKNOWN
    p: float = math.nan
    adjusted: float = math.nan
    variance: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    images_drawn: int = 0

    @property
    def shown(self) -> Interval:
        """Of seeds and images or, where images are unknown, of seeds alone."""
        return self.both if self.both.is_known else self.seeds

    @property
    def dominates(self) -> str:
        """Which has the larger standard error alone, `seeds` or `images`; empty if one is unknown, or both are 0."""
        by_seeds, by_images, _ = self.variance
        return "seeds" if by_seeds > by_images else "images" if by_images > by_seeds else ""

    def seeds_needed(self) -> int | None:
        """Fewest seeds, on these images, that find a difference of `GAIN` at a power of `POWER`; None: no number does.

        Raises:
            ValueError: `pairs` is below 2, so that nothing is known of seeds.
        """
        return _fewest(range(2, _MOST_SEEDS + 1), lambda seeds: self._power(seeds, 1))

    def images_needed(self) -> int | None:
        """Fewest images, with these seeds, that find a difference of `GAIN` at a power of `POWER`; None: none do.

        Raises:
            ValueError: nothing is known of seeds or images.
        """
        if not self.images_drawn:
            raise ValueError("nothing is known of the images")
        return _fewest(range(2, _MOST_IMAGES), lambda images: self._power(self.pairs, images / self.images_drawn))

    def _power(self, seeds: int, images: float) -> float:
        """How often `GAIN` would be found, with that many seeds and that many times as many images."""
        if self.pairs < 2:
            raise ValueError("nothing is known of the seeds")
        mean, all_images, common = (0 if math.isnan(part) else part for part in self.variance)
        own = self.pairs * (all_images - common)  # what images do to a seed in its own way
        per_seed = max(self.pairs * mean - own, 0) + own / images
        error, freedom = _combine(per_seed / seeds, common / images, 0, seeds)
        # Beyond a million degrees of freedom Student's t is normal to six digits, and scipy's no longer computed, as it
        # is not where the error is mere rounding.
        freedom = min(freedom, 1e6)
        return float(nct.sf(t.ppf(1 - LEVEL / 2, freedom), freedom, GAIN / max(error, 1e-6 * GAIN)))


def compare(sample: Sample) -> Difference:
    """The mean of differences with its intervals; the same numbers give the same intervals.

    Args:
        sample: a difference of samples. Seeds that only one of both has, or for which either is NaN, do not count.
    """
    known = sample.values.dropna().astype(float).sort_index()
    count, mean = len(known), float(known.mean())
    drawn = sample.resampled.reindex(known.index).to_numpy(dtype=float)
    drawn = drawn[:, ~np.isnan(drawn).any(0)]  # a resample may have no object
    seeds = images = both = _UNKNOWN
    of_seeds, of_images, common, p = (math.nan,) * 4
    if count > 1:
        of_seeds = float(known.var()) / count
        seeds, p = _student(mean, math.sqrt(of_seeds), count - 1)
    if count and drawn.shape[1] > 1:
        means = drawn.mean(0)
        images, of_images = (
            Interval(*map(float, np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2]))),
            float(means.var(ddof=1)),
        )
        if count > 1:
            own = drawn.var(axis=1, ddof=1).sum()
            common = min(max((count**2 * of_images - own) / (count * (count - 1)), 0), of_images)
            both, p = _student(mean, *_combine(of_seeds, common, of_images, count))
    drawn_of = len(sample.image_ids) if images.is_known else 0
    return Difference(count, mean, seeds, images, both, p, p, (of_seeds, of_images, common), drawn_of)


def _combine(of_seeds: float, common: float, at_least: float, seeds: int) -> tuple[float, float]:
    """Standard error of A + C, and its degrees of freedom."""
    variance = max(of_seeds + common, at_least)
    return math.sqrt(variance), (seeds - 1) * (variance / of_seeds) ** 2 if of_seeds > 0 else math.inf


def _student(mean: float, error: float, freedom: float) -> tuple[Interval, float]:
    """Interval and two-sided p of a mean with a standard error."""
    margin = float(t.ppf(1 - LEVEL / 2, freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)
    return Interval(mean - margin, mean + margin), p


def _fewest(numbers: range, power: Callable[[int], float]) -> int | None:
    """The first of ascending numbers that has the power, which grows with them."""
    place = bisect.bisect_left(numbers, True, key=lambda number: power(number) >= POWER)
    return numbers[place] if place < len(numbers) else None


def adjust(found: Mapping[str, Difference]) -> dict[str, Difference]:
    """The same with p corrected for their number: Holm's step-down procedure (Scand. J. Statist. 6, 1979).

    The chance that any of them is called a difference where there is none is then at most that of a single test.
    """
    tested = sorted((label for label, each in found.items() if not math.isnan(each.p)), key=lambda each: found[each].p)
    adjusted, highest = dict.fromkeys(found, math.nan), 0.0
    for place, label in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - place) * found[label].p))
        adjusted[label] = highest
    return {label: replace(each, adjusted=adjusted[label]) for label, each in found.items()}


def rank(values: Mapping[str, pd.Series]) -> dict[str, tuple[int, int] | None]:
    """Labels from the highest mean to the lowest, each with the ranks of those that it cannot be told apart from.

    That is Tukey's honest significant difference at 5 % for all pairs together, with Kramer's correction where numbers
    of values differ: of many configurations that are all the same, one pair or more is told apart in 5 % of studies.
    The standard deviation is taken to be that of all, pooled.

    Args:
        values: of each label, one per seed; NaN does not count.

    Returns:
        first and last rank, from 1; None if no label has two values, so that nothing is known of their spread.
    """
    known = {label: series.dropna().to_numpy(dtype=float) for label, series in values.items()}
    ordered = sorted((label for label in known if len(known[label])), key=lambda label: -known[label].mean())
    freedom = sum(len(known[label]) - 1 for label in ordered)
    if not freedom or len(ordered) < 2:
        return dict.fromkeys(ordered)
    means, counts = (np.array([f(known[label]) for label in ordered]) for f in (np.mean, len))
    variance = sum(((known[label] - known[label].mean()) ** 2).sum() for label in ordered) / freedom
    critical = studentized_range.ppf(0.95, len(ordered), freedom)
    limits = critical * np.sqrt(variance / 2 * (1 / counts[:, None] + 1 / counts[None]))
    alike = np.abs(means[:, None] - means[None]) <= limits
    ranks = [np.flatnonzero(row) + 1 for row in alike]
    return {label: (int(found[0]), int(found[-1])) for label, found in zip(ordered, ranks, strict=True)}
