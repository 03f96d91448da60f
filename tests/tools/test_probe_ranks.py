import csv

import pytest
from probe_ranks import MEASURES, main

from detpool.files import write_csv_atomically

VARIANTS = {"roi_pool": "pooler=roi_pool", "roi_warp": "pooler=roi_warp", "pr_roi_pool": "pooler=pr_roi_pool"}


def summary(metric, stride, configuration, mean):
    data = f"shapes, test split (backbone.output_stride={stride})"
    return {"data": data, "configuration": configuration, "metric": metric, "seeds": 4, "mean": mean, "std": 0.0}


def test_what_is_not_known_is_left_out_or_refused(tmp_path, capsys):
    probed = [{"backbone.output_stride": 16, "variant": name, "AP": n} for n, name in enumerate(VARIANTS)]
    trained = [summary("AP", 16, label, n) for n, label in enumerate(VARIANTS.values())]
    write_csv_atomically(tmp_path / "pooling_shapes" / "summary.csv", trained)
    arguments = [str(tmp_path), "--trained", str(tmp_path / "pooling_shapes")]
    write_csv_atomically(tmp_path / "shapes" / "probe.csv", probed)
    main(arguments)
    with (tmp_path / "ranks.csv").open() as file:
        assert {(row["trained"], row["probe"], float(row["rho"])) for row in csv.DictReader(file)} == {("AP", "AP", 1)}
    write_csv_atomically(tmp_path / "shapes" / "probe.csv", [{"variant": "roi_pol", "AP": 1.0}])
    with pytest.raises(SystemExit):
        main(arguments)
    assert "variant must be one of roi_pool, roi_pool_mean" in capsys.readouterr().err


def test_orders_are_compared_within_strides(tmp_path, capsys):
    """At stride 16 the probe has the trained order, at 32 the reverse; over both they cancel."""
    probed, trained = [], []
    names = {name for measures in MEASURES.values() for name in measures}
    for stride, sign in ((16, 1), (32, -1)):
        for number, (variant, label) in enumerate(VARIANTS.items()):
            probed.append({"backbone.output_stride": stride, "variant": variant} | dict.fromkeys(names, sign * number))
            trained += [summary(metric, stride, label, stride + number) for metric in MEASURES]
    write_csv_atomically(tmp_path / "probe" / "shapes" / "probe.csv", probed)
    write_csv_atomically(tmp_path / "pooling_shapes" / "summary.csv", trained)
    main([str(tmp_path / "probe"), "--trained", str(tmp_path / "pooling_shapes")])
    with (tmp_path / "probe" / "ranks.csv").open() as file:
        rows = {(row["trained"], row["probe"], row["poolings of"]): float(row["rho"]) for row in csv.DictReader(file)}
    for trained_metric, measures in MEASURES.items():
        for measure in measures:
            assert rows[trained_metric, measure, "shapes, stride 16"] == pytest.approx(1)
            assert rows[trained_metric, measure, "shapes, stride 32"] == pytest.approx(-1)
            assert rows[trained_metric, measure, "all"] == pytest.approx(0)
    assert "shapes, stride 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("probed", "message"),
    [
        ([], "has no folder nuclei, nuclei_sampling, shapes with a probe.csv"),
        (["shapes"], "--trained: there is no pooling_shapes/summary.csv"),
    ],
)
def test_what_is_missing_is_named(probed, message, tmp_path, capsys):
    for name in probed:
        write_csv_atomically(tmp_path / name / "probe.csv", [{"variant": "roi_pool", "AP": 1.0}])
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--trained", str(tmp_path / "none")])
    assert message in capsys.readouterr().err
