"""`tools/export_onnx.py` on a run of seconds."""

import export_onnx
import pytest

from detpool.training import runs

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")


@pytest.mark.slow
def test_a_run_is_written_and_compared(tiny_config, tmp_path, capsys, monkeypatch) -> None:
    config = tiny_config("trainer.max_epochs=1", "model.roi_heads.score_thresh=0.01")
    runs.train(config)
    arguments = [f"ckpt_path={config.run_dir}", f"output={tmp_path / 'model.onnx'}", "count=2"]
    capsys.readouterr()
    export_onnx.main(arguments)
    assert "images of 64 x 64; " in (said := capsys.readouterr().out)
    assert "detections in 2 images, the same in ONNX Runtime" in said
    monkeypatch.setattr(export_onnx, "LARGEST", {"scores": -1.0})
    with pytest.raises(SystemExit):
        export_onnx.main(arguments)
    assert "scores of ONNX Runtime differ" in capsys.readouterr().err
