"""Differences between configurations, and whether they are beyond the chance of seeds and of images.

A difference has two sources of chance. With other *seeds*, training would have led to other detectors. With other
*images*, the same detectors would have been judged differently, in part equally for all seeds and in part differently
for each. There are S pairs of runs that share a seed. Their differences are d_s, and d_sr on resample r of the images;
resamples are the same for all runs. The intervals are:

- seeds alone: Student's t interval of the d_s, paired (S - 1 degrees of freedom);
- images alone: the percentile bootstrap of the mean over s of d_sr (Efron and Tibshirani, An introduction to the
  bootstrap, 1993, chapter 13);
- both: seeds and images are crossed, since all seeds are judged on the same images. A = var(d_s) / S includes the
  effect of images that differs between seeds. C, the mean covariance over r of two seeds, is the effect of images that
  all seeds share. The variance of the mean is A + C, or V, that of the images alone, if V is larger by chance. The
  interval is Student's t with the degrees of freedom of Welch and Satterthwaite, (S - 1) (variance / A)^2. Without
  images it equals the first interval; if all seeds agree, only the images matter.
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
"""Significance level of tests; the confidence level of intervals is 1 - LEVEL."""
POWER = 0.8
GAIN = 0.01
"""The difference that `seeds_needed` and `images_needed` should detect: one point."""
_MOST_SEEDS, _MOST_IMAGES = 1000, 10_000_000


@dataclass(frozen=True)
class Sample:
    """One number of each run of a configuration, or differences of such numbers.

    Attributes:
        values: the number by seed; NaN where it is unknown.
        resampled: one row per seed and one column per resample of the images; the row is missing or NaN if unknown.
        image_ids: ids of the images that were resampled.
    """

    values: pd.Series
    resampled: pd.DataFrame = field(default_factory=pd.DataFrame)
    image_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __sub__(self, other: Sample) -> Sample:
        if not np.array_equal(self.image_ids, other.image_ids):
            return Sample(self.values - other.values)
        return Sample(self.values - other.values, self.resampled - other.resampled, self.image_ids)


class Interval(NamedTuple):
    """An interval; both ends are NaN if it is unknown."""

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
    """The mean difference of pairs of runs, and its 95 % intervals.

    Attributes:
        pairs: number of seeds that both configurations have.
        difference: the mean difference.
        seeds, images, both: the intervals described in the module's docstring.
        p: two-sided p-value of no difference, for seeds and images together or, without images, for seeds alone.
        adjusted: `p` corrected for several comparisons (`adjust`).
        variance: A, V and C of the module's docstring; NaN where unknown.
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
        """The interval for seeds and images together or, if images are unknown, for seeds alone."""
        return self.both if self.both.is_known else self.seeds

    @property
    def dominates(self) -> str:
        """The larger source of error, `seeds` or `images`; empty if one is unknown or they are equal."""
        by_seeds, by_images, _ = self.variance
        return "seeds" if by_seeds > by_images else "images" if by_images > by_seeds else ""

    def seeds_needed(self) -> int | None:
        """Returns the fewest seeds, on these images, that detect `GAIN` with a power of `POWER`; None if too many.

        Raises:
            ValueError: If `pairs` is below 2, so that the effect of seeds is unknown.
        """
        return _fewest(range(2, _MOST_SEEDS + 1), lambda seeds: self._power(seeds, 1))

    def images_needed(self) -> int | None:
        """Returns the fewest images, with these seeds, that detect `GAIN` with a power of `POWER`; None if too many.

        Raises:
            ValueError: If the effect of seeds or of images is unknown.
        """
        if not self.images_drawn:
            raise ValueError("nothing is known of the images")
        return _fewest(range(2, _MOST_IMAGES), lambda images: self._power(self.pairs, images / self.images_drawn))

    def _power(self, seeds: int, images: float) -> float:
        """Returns the power to detect `GAIN` with `seeds` seeds and `images` times as many images."""
        if self.pairs < 2:
            raise ValueError("nothing is known of the seeds")
        mean, all_images, common = (0 if math.isnan(part) else part for part in self.variance)
        own = self.pairs * (all_images - common)  # the effect of images that differs between seeds
        per_seed = max(self.pairs * mean - own, 0) + own / images
        error, freedom = _combine(per_seed / seeds, common / images, 0, seeds)
        # Beyond a million degrees of freedom Student's t is normal to six digits, and scipy fails to compute it. It
        # also fails if the error is mere rounding.
        freedom = min(freedom, 1e6)
        return float(nct.sf(t.ppf(1 - LEVEL / 2, freedom), freedom, GAIN / max(error, 1e-6 * GAIN)))


def compare(sample: Sample) -> Difference:
    """Computes the mean difference and its intervals, deterministically.

    Args:
        sample: a difference of samples. Seeds that only one of them has, or for which either is NaN, do not count.
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
    """Returns the standard error for the variance A + C, or `at_least`, and its degrees of freedom."""
    variance = max(of_seeds + common, at_least)
    return math.sqrt(variance), (seeds - 1) * (variance / of_seeds) ** 2 if of_seeds > 0 else math.inf


def _student(mean: float, error: float, freedom: float) -> tuple[Interval, float]:
    """Returns the interval and the two-sided p-value of a mean with a standard error."""
    margin = float(t.ppf(1 - LEVEL / 2, freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)
    return Interval(mean - margin, mean + margin), p


def _fewest(numbers: range, power: Callable[[int], float]) -> int | None:
    """Returns the first of ascending numbers with enough power, which grows with them; None if there is none."""
    place = bisect.bisect_left(numbers, True, key=lambda number: power(number) >= POWER)
    return numbers[place] if place < len(numbers) else None


def adjust(found: Mapping[str, Difference]) -> dict[str, Difference]:
    """Corrects p for the number of comparisons by Holm's step-down procedure (Scand. J. Statist. 6, 1979).

    The probability of any false positive among them is then at most that of a single test.
    """
    tested = sorted((label for label, each in found.items() if not math.isnan(each.p)), key=lambda each: found[each].p)
    adjusted, highest = dict.fromkeys(found, math.nan), 0.0
    for place, label in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - place) * found[label].p))
        adjusted[label] = highest
    return {label: replace(each, adjusted=adjusted[label]) for label, each in found.items()}


def rank(values: Mapping[str, pd.Series]) -> dict[str, tuple[int, int] | None]:
    """Ranks labels from the highest mean to the lowest, each with the ranks of those it does not differ from.

    The test is Tukey's honest significant difference at 5 % for all pairs together, with Kramer's correction for
    unequal numbers of values: if all configurations are the same, 5 % of studies find a difference in any pair. The
    standard deviation is pooled over all labels.

    Args:
        values: the values of each label, one per seed; NaN does not count.

    Returns:
        The first and last rank, from 1, by label; None if no label has two values or there is only one label. Labels
        without values are left out.
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
