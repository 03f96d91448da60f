"""The summary of a section: which configuration is best, by how much, whether beyond chance, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from detpool.report.costs import Cost, by_phase, ratio
from detpool.report.groups import Section
from detpool.report.statistics import LEVEL, Difference, Interval, adjust, compare
from detpool.report.tables import interval, mean_and_std, number_needed, p_value, percentage_points

UNMEASURED = "not measured (tools/cost.py does it)"


def answer(section: Section, metric: str, costs: Mapping[str, Cost]) -> dict[str, str]:
    """Returns the answers for a section, by question; empty if there is nothing to compare.

    Args:
        section: the section of which the configurations are compared.
        metric: the metric to compare them by.
        costs: the costs that `tools/cost.py` measured, by label of the configuration.
    """
    means = {label: section.values(label, metric).mean() for label in section.runs}
    ranked = sorted((label for label in means if means[label] == means[label]), key=lambda label: -means[label])
    if len(ranked) < 2 or section.baseline not in ranked:
        return {}
    best = ranked[0]
    other = section.baseline if best != section.baseline else ranked[1]
    apart = f"{other}, {'the baseline' if other == section.baseline else 'the second best'}"
    # p is corrected over the comparisons that the tables show; those of the best with all others are another family.
    against = adjust({label: compare(section.gains(label, metric)) for label in section.others})
    of_best = adjust({label: compare(section.gains(best, metric, label)) for label in ranked[1:]})
    found = replace(of_best[other], adjusted=against[best if other == section.baseline else other].adjusted)
    notes = [f"95 % interval, seeds {'and images' if found.both.is_known else 'alone'}"] if found.shown.is_known else []
    if found.pairs < max(section.values(label, metric).count() for label in (best, other)):
        notes.append(f"over the {_count(found.pairs, 'seed')} that both have")
    how = f" ({'; '.join(notes)})" if notes else ""
    alike = [label for label, each in of_best.items() if not each.adjusted < LEVEL]
    shown = {
        "best": f"{best}: {metric} {mean_and_std(section.values(best, metric))} %"
        f", {_count(len(section.runs[best]), 'seed')}",
        "by how much": f"{percentage_points(found)} points above {apart}{how}"
        if found.pairs
        else f"not known: it has no seed in common with {apart}",
        "beyond seeds": _beyond(found.seeds, f"Student's t, {_count(found.pairs, 'pair')}"),
        "beyond images": _beyond(found.images, f"bootstrap, {len(section.image_ids)} images"),
        "beyond both": _beyond_both(found, len(against)),
        "not told apart": "; ".join(alike)
        or f"none: p is below {LEVEL} for each of the others, corrected by Holm's method",
        "cost": _cost(costs[best], costs[other], other) if best in costs and other in costs else UNMEASURED,
        "to see 1 point": _needed(found),
    }
    return {question: text for question, text in shown.items() if text}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _beyond(found: Interval, how: str) -> str:
    if not found.is_known:
        return "not known"
    return f"{'yes' if found.excludes_zero else 'no'}, {interval(found)} ({how})"


def _beyond_both(found: Difference, comparisons: int) -> str:
    if not found.both.is_known:
        return "not known"
    corrected = f" (Holm, {comparisons} comparisons with the baseline)" if comparisons > 1 else ""
    p = p_value(found.adjusted)
    return f"{'yes' if found.adjusted < LEVEL else 'no'}, p {p if p.startswith('<') else f'= {p}'}{corrected}"


def _cost(mine: Cost, others: Cost, label: str) -> str:
    times = [by_phase(cost.seconds)["step"] for cost in (mine, others)]
    found = ratio(*times)
    interval = "" if found.low != found.low else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.median:.3f}{interval} × the time of a training step of {label}"


def _needed(found: Difference) -> str:
    """Says how many seeds or images would be needed to detect a difference of one point."""
    if found.pairs < 2:
        return ""
    parts = [f"{number_needed(found.seeds_needed())} seeds on these images"]
    if found.images_drawn:
        parts.append(f"{number_needed(found.images_needed())} images with these seeds")
    larger = f"; the larger error is that of {found.dominates}" if found.dominates else ""
    return f"{', or '.join(parts)}{larger}"
