"""How often intervals hold for simulated detectors."""

from __future__ import annotations

import numpy as np
import pytest
from interval_coverage import coverage, detect, main, make_truth, of_images

from detpool.evaluation import CocoEvaluator
from detpool.evaluation.resampling import weighted_ap


def test_some_images_are_those_that_count_once():
    truth = make_truth(30)
    matches = CocoEvaluator(truth).matches(detect(truth, 0.1, seed=0))
    places = np.array([2, 3, 11, 29])
    weights = np.isin(np.arange(30), places)[None].astype(int)
    ap = weighted_ap(of_images(matches, places), np.ones((1, 4), int))["AP"]
    assert 0.1 < ap[0] < 0.9
    assert ap == weighted_ap(matches, weights)["AP"]


def test_more_than_there_is_cannot_be_drawn(capsys):
    for words in (["--seeds", "1"], ["--seeds", "31"], ["--images", "2001"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "seeds must be 2 to 30, images 2000 at most, got" in capsys.readouterr().err


@pytest.mark.slow
def test_intervals_of_subsets_of_a_pool_hold():
    found = coverage(150, resamples=500).set_index(["metric", "interval of"])["contains the truth, %"]
    assert found[:, "images"].between(90, 98).all(), found
    # Standard error 1.8; seeds and images are drawn without replacement, which makes intervals a little too wide.
    assert found.between(89, 100).all(), found
