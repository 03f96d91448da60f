#!/usr/bin/env python
"""Measures how well the ranking of poolings by tools/ridge_probe.py predicts the ranking of trained detectors.

    python tools/probe_ranks.py results/probe/lite0 --trained results/{pooling_nuclei,sampling_nuclei,pooling_shapes}

The folder contains a `probe.csv` in `nuclei/`, `nuclei_sampling/` and `shapes/`, one for each study; the folders given
by `--trained` contain the `summary.csv` of the studies' reports. Spearman's rho is computed over the poolings of one
data set and stride, with a bootstrap interval over the poolings and the standard errors of the trained means. Writes
`ranks.csv` and `pairs.csv`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from bench.output import Table
from command_line import Parser

from detpool.errors import ConfigError, exit_with_message
from detpool.files import write_csv_atomically
from detpool.probing.ranks import rank_agreement

LABELS = {
    "roi_pool": "pooler=roi_pool",
    "roi_pool_mean": "pooler=pool",
    "roi_warp": "pooler=roi_warp",
    "roi_align_max": "pooler=roi_align, pooler.reduction=max",
    "roi_align": "pooler=roi_align, pooler.reduction=mean",
    "pr_roi_pool": "pooler=pr_roi_pool",
    "not_aligned": "pooler=roi_align, pooler.sampling_ratio=2, pooler.aligned=false",
    "1_point": "pooler=roi_align, pooler.sampling_ratio=1, pooler.aligned=true",
    "4_points": "pooler=roi_align, pooler.sampling_ratio=4, pooler.aligned=true",
    "adaptive": "pooler=roi_align, pooler.sampling_ratio=0, pooler.aligned=true",
    "pr_roi_pool_aligned": "pooler=pr_roi_pool, pooler.aligned=true",
}
"""Variants of the studies, by their names in the reports."""
MEASURES = {
    "AP": ("AP", "AP75", "R2/box", "R2/class", "IoU/after"),
    "mask_AP": ("mask_AP", "mask_AP75", "R2/mask", "AP"),
}
"""Metrics of trained detectors, and the measures of the probe that should predict them."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("probes", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--trained", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of reports")
    options = parser.parse_args(argv)
    with exit_with_message():
        pairs = _pairs(options.probes, options.trained)
        write_csv_atomically(options.probes / "pairs.csv", pairs.to_dict("records"))
        rows = []
        for trained, probes in ((name, probes) for name, probes in MEASURES.items() if f"trained/{name}" in pairs):
            for measure in (name for name in probes if name in pairs):
                parts = {f"{data}, stride {stride}": part for (data, stride), part in pairs.groupby(["data", "stride"])}
                for name, chosen in [*((name, [part]) for name, part in parts.items()), ("all", list(parts.values()))]:
                    rho, low, high = rank_agreement(
                        [(part[measure].tolist(), part[f"trained/{trained}"].tolist()) for part in chosen],
                        [part[f"error/{trained}"].tolist() for part in chosen],
                    )
                    poolings = sum(map(len, chosen))
                    row: dict[str, Any] = {"trained": trained, "probe": measure, "poolings of": name}
                    rows.append(row | {"poolings": poolings, "rho": rho, "low": low, "high": high})
        write_csv_atomically(options.probes / "ranks.csv", rows)
        table = Table("Spearman's rho", ["trained", "probe", "poolings of"], ["poolings", "rho", "low", "high"])
        for row in rows:
            numbers = [f"{row[name]:.2f}" for name in ("rho", "low", "high")]
            table.add_row(row["trained"], row["probe"], row["poolings of"], str(row["poolings"]), *numbers)
        print(table)


def _pairs(folder: Path, reports: Sequence[Path]) -> pd.DataFrame:
    """One row per pooling, data set and stride: the probe's measures, and means and standard errors of trained metrics.

    Measures that a file lacks, for example those of masks, are left out.

    Raises:
        ConfigError: If there is no probe.csv, or a pooling is unknown or was not trained.
    """
    files = {name: folder / name / "probe.csv" for name in ("nuclei", "nuclei_sampling", "shapes")}
    known = {name: pd.read_csv(file) for name, file in files.items() if file.is_file()}
    if not known:
        raise ConfigError(f"{folder} has no folder {', '.join(files)} with a probe.csv")
    trained = {
        report.name: pd.read_csv(report / "summary.csv") for report in reports if (report / "summary.csv").is_file()
    }
    rows = []
    for name, probed in known.items():
        study = {"nuclei_sampling": "sampling_nuclei"}.get(name, f"pooling_{name}")
        if study not in trained:
            raise ConfigError(f"--trained: there is no {study}/summary.csv, whose poolings {files[name]} has")
        summary = trained[study]
        for row in probed.to_dict("records"):
            stride = int(row.get("backbone.output_stride", 32))
            if (label := LABELS.get(str(row.get("variant")))) is None:
                variants = ", ".join(LABELS)
                raise ConfigError(f"{files[name]}: variant must be one of {variants}, got {row.get('variant')}")
            of_stride = summary.data.str.contains(f"output_stride={stride})", regex=False) | (
                study == "sampling_nuclei"
            )
            means = summary[of_stride & (summary.configuration == label)].set_index("metric")
            if means.empty:
                raise ConfigError(f"{study}/summary.csv has no {label} at stride {stride}")
            pair = {"data": name.partition("_")[0], "stride": stride, "pooling": row["variant"]}
            for metric in (metric for metric in MEASURES if metric in means.index):
                pair[f"trained/{metric}"] = means.loc[metric, "mean"]
                pair[f"error/{metric}"] = means.loc[metric, "std"] / means.loc[metric, "seeds"] ** 0.5
            measured = dict.fromkeys(measure for measures in MEASURES.values() for measure in measures)
            rows.append(pair | {measure: row[measure] for measure in measured if measure in row})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
