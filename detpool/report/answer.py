"""What a reader wants to know first: which configuration is best, by how much, beyond what chance, at what cost."""

from __future__ import annotations

from detpool.report.groups import Section
from detpool.report.statistics import LEVEL, POWER, Difference, Interval, adjust, compare
from detpool.report.tables import interval, mean_and_std, number_needed, p_value, percentage_points, step_ratios


def answer(section: Section, metric: str) -> dict[str, str]:
    """The answer of a section, by its questions; empty where there is nothing to compare."""
    means = {label: section.values(label, metric).mean() for label in section.runs}
    ranked = sorted((label for label in means if means[label] == means[label]), key=lambda label: -means[label])
    if len(ranked) < 2 or section.baseline not in ranked:
        return {}
    best = ranked[0]
    other = section.baseline if best != section.baseline else ranked[1]
    which = "the baseline" if other == section.baseline else "the second best"
    against = adjust({label: compare(section.gains(label, metric)) for label in section.others})
    found = adjust({label: compare(section.gains(best, metric, label)) for label in ranked[1:]})
    # Of the comparisons with the baseline that tables show, the one of these two.
    adjusted = against[best if other == section.baseline else other].adjusted
    alike = [label for label, each in found.items() if not each.adjusted < LEVEL]
    shown = {
        "best": f"{best}: {metric} {mean_and_std(section.values(best, metric))} %, seeds {len(section.runs[best])}",
        "by how much": f"{percentage_points(found[other])} points above {other}, {which}{_interval_of(found[other])}",
        "beyond seeds": _beyond(found[other].seeds, f"Student's t, {found[other].pairs} seeds in common"),
        "beyond images": _beyond(found[other].images, f"bootstrap of {len(section.image_ids)} images"),
        "beyond both": _beyond_both(found[other], adjusted, len(against)),
        "as good as the best": "; ".join(alike) or "none: it differs from each of the others beyond seeds and images",
        "cost": _cost(section, best, other),
        "to see 1 point": _needed(found[other]),
    }
    return {question: text for question, text in shown.items() if text}


def _interval_of(found: Difference) -> str:
    what = "seeds and images" if found.both.is_known else "seeds alone"
    return f" [95 % interval, of {what}]" if found.shown.is_known else ""


def _beyond(found: Interval, how: str) -> str:
    if not found.is_known:
        return "not known"
    return f"{'yes' if found.excludes_zero else 'no'}: {interval(found)} ({how})"


def _beyond_both(found: Difference, adjusted: float, comparisons: int) -> str:
    if not found.both.is_known:
        return "not known"
    many = f", corrected for {comparisons} comparisons with the baseline (Holm)" if comparisons > 1 else ""
    larger = f"; {found.dominates} are the larger part of the error" if found.dominates else ""
    return f"{'yes' if adjusted < LEVEL else 'no'}: p = {p_value(adjusted)}{many}{larger}"


def _cost(section: Section, best: str, other: str) -> str:
    """How long a training step takes, as the runs recorded it."""
    ratios = step_ratios(section, other)
    return "" if ratios[best] != ratios[best] else f"{ratios[best]:.2f} × a training step of {other}"


def _needed(found: Difference) -> str:
    """What would resolve a difference of one point."""
    if found.pairs < 2:
        return ""
    parts = [f"{number_needed(found.seeds_needed())} seeds on these images"]
    if found.images_drawn:
        parts.append(f"{number_needed(found.images_needed())} images with these seeds")
    return f"{', or '.join(parts)} (power {POWER:.0%})".replace("%", " %")
