"""What `configs/pooler` chooses besides the operator is what docs/operators.md says, and can be made equal."""

import re
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from detpool import ops

ROOT = Path(__file__).parents[2]


def configured(name):
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return compose(f"pooler/{name}").pooler


def test_the_table_says_what_the_files_set():
    text = (ROOT / "docs" / "operators.md").read_text().partition("## As configured")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in re.findall(r"^\| `\w.*", text, re.M)]
    assert rows.pop(0)[0] == "pooler="
    assert {row[0] for row in rows} == {path.stem for path in (ROOT / "configs" / "pooler").glob("*.yaml")}
    for name, aligned, points, _ in rows:
        config = configured(name)
        operator = config.get("operator") or {}
        for key, said in {"aligned": aligned, "sampling_ratio": points}.items():
            value = operator.get(key)
            assert said == ("" if value is None else str(value).lower()), (name, key)
        for key, value in {"output_size": 7, "canonical_scale": 224, "canonical_level": 4}.items():
            assert config.get(key, value) == value, (name, key)


def test_an_override_leaves_the_sampling_as_the_only_difference():
    """On a linear map the mean of any symmetric samples is the value at the bin's centre."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = torch.stack([x, y])[None]
    rois = torch.tensor([[0, 40.0, 56, 180, 200]])

    def pooled(name, **settings):
        return instantiate(configured(name).operator, **settings)(ramp, rois, output_size=7, spatial_scale=1 / 8)

    expected = 40 / 8 - 0.5 + (torch.arange(7) + 0.5) * (140 / 8 / 7)
    torch.testing.assert_close(pooled("roi_align")[0, 0, 0], expected)
    torch.testing.assert_close(pooled("pr_roi_pool")[0, 0, 0], expected + 0.5)
    torch.testing.assert_close(pooled("pr_roi_pool", aligned=True), pooled("roi_align"))
    noise = torch.rand(1, 2, 32, 32)
    assert torch.equal(
        instantiate(configured("pool").operator, sampling_ratio=2)(noise, rois, output_size=7, spatial_scale=1 / 8),
        ops.roi_align(noise, rois, 7, 1 / 8, sampling_ratio=2, aligned=True),
    )
