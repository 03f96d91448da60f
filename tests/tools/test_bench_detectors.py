"""The benchmark of whole detectors runs, and what it compares does the work it is said to do."""

import bench_detectors
import pytest
import torch


def test_a_small_run_writes_table_and_plot(tmp_path, capsys):
    arguments = ["proposals", "--detectors", "R-FCN", "SPP-Net", "--counts", "5", "10", "--size", "64", "96"]
    assert bench_detectors.main([*arguments, "--rounds", "1", "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "proposals.csv").read_text().splitlines()
    assert [line.rsplit(",", 4)[0] for line in lines[1:]] == ["R-FCN,5", "R-FCN,10", "SPP-Net,5", "SPP-Net,10"]
    assert all(float(line.split(",")[2]) > 0 for line in lines[1:])
    assert (tmp_path / "proposals.png").stat().st_size > 5000
    assert (tmp_path / "detectors.json").exists()
    assert "R-FCN" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Faster R-CNN C4", "R-FCN", "IoU-Net"])
def test_all_proposals_go_through_the_second_stage_and_about_as_many_scores_pass(name):
    torch.manual_seed(0)
    model = bench_detectors.build(name)
    call = bench_detectors.call(model, torch.rand(3, 64, 96), bench_detectors.random_boxes(7, (64, 96)))
    seen = []
    model.roi_heads.box_predictor.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    call()
    (logits,) = seen
    assert len(logits) == 7
    assert (logits.softmax(-1)[:, 1:] > model.roi_heads.score_thresh).sum() == 7


def test_proposals_are_pooled_from_one_map():
    model = bench_detectors.build("SPP-Net")
    seen = []
    model.backbone.register_forward_hook(lambda _, args, maps: seen.append(args[0].shape[0]))
    pooled = bench_detectors.shared_map(model, torch.rand(3, 64, 96), bench_detectors.random_boxes(7, (64, 96)))
    assert seen == [1]
    assert len(pooled) == 7


def test_crops_go_through_the_whole_backbone():
    seen = []
    body = torch.nn.Conv2d(3, 1, 1)
    body.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    bench_detectors.crops(body, torch.rand(3, 64, 96), bench_detectors.random_boxes(12, (64, 96)))
    assert seen == [(10, 3, 224, 224), (2, 3, 224, 224)]


def test_arguments_are_checked(capsys):
    for arguments, message in (
        (["claim"], "unknown name 'claim'; did you mean 'claims'?"),
        (["--counts", "5000"], "--counts must lie in 1 .. 2000"),
        (["--size", "10", "900"], "--size must be at least 64 64"),
    ):
        with pytest.raises(SystemExit):
            bench_detectors.main(arguments)
        assert message in capsys.readouterr().err
