"""Trained runs in use: `detpool.load` and `tools/predict.py`, against what the runs themselves recorded."""

import json
import shutil

import numpy as np
import predict as tool
import pytest
import torch
import visualize
from PIL import Image
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import to_pil_image

import detpool
from detpool import ops
from detpool.errors import ConfigError, DataError
from detpool.evaluation.results import RESULTS, read_results
from detpool.masks import decode_segmentation
from detpool.poolers import RoIPooler
from detpool.training import runs

MASKS = ["model=mask_rcnn", "data.masks=true", "evaluation.iou_types=[bbox,segm]", "trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def run(compose_tiny, tmp_path_factory):
    """The directory of a finished run of Mask R-CNN."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.train(compose_tiny(folder, *MASKS, "data.eval_batch_size=1"))
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    return detpool.load(run, device="cpu")


@pytest.fixture(scope="module")
def files(run, predictor, tmp_path_factory):
    """The validation images as files, in order."""
    folder = tmp_path_factory.mktemp("images")
    dataset = runs.build_data(predictor.config).val_dataset
    paths = [folder / f"{image_id:03}.png" for image_id in dataset.image_ids]
    for index, path in enumerate(paths):
        to_pil_image(dataset.load(index)[0]).save(path)
    return paths


def kinds(paths):
    """Files as all that is accepted."""
    yield [str(path) for path in paths]
    pictures = [Image.open(path) for path in paths]
    yield pictures
    yield [np.array(picture) for picture in pictures]
    tensors = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
    yield tensors
    yield [tensor.float() / 255 for tensor in tensors]


def test_predictions_are_those_of_the_run(run, predictor, files):
    rows = read_results(run / RESULTS)
    assert len(rows) > 50
    for images in kinds(files):
        predictions = predictor.predict(images)
        assert sum(len(each["scores"]) for each in predictions) == len(rows)
        found = iter(rows)
        for image_id, prediction in enumerate(predictions, 1):
            assert prediction["masks"].shape == (len(prediction["scores"]), 64, 64)
            for box, label, score, mask in zip(
                *(prediction[key] for key in ("boxes", "labels", "scores", "masks")), strict=True
            ):
                row = next(found)
                assert (row["image_id"], row["category_id"]) == (image_id, int(label))
                # x and width are rounded to two decimals each
                expected = box_convert(torch.tensor(row["bbox"]), "xywh", "xyxy")
                torch.testing.assert_close(box, expected, atol=0.0101, rtol=0)
                assert abs(row["score"] - float(score)) < 1e-6
                assert np.array_equal(mask.numpy(), decode_segmentation(row["segmentation"], (64, 64)))


def test_a_single_image_and_an_image_without_detections(run, files):
    strict = detpool.load(run, "model.roi_heads.score_thresh=0.999", device="cpu")
    (prediction,) = strict.predict(files[0])
    assert {key: tuple(value.shape) for key, value in prediction.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 64, 64),
    }
    assert strict.predict([]) == []


def test_predicted_ious_are_there_without_detections(compose_tiny, tmp_path, files, predictor):
    config = compose_tiny(tmp_path / "iou", "model=iou_net", without=["model"])
    config.class_names = list(predictor.class_names)
    net = detpool.predictor.Predictor(config, runs.build_module(config).model, torch.device("cpu"))
    for threshold, some in ((0.0, True), (1.0, False)):
        net.model.roi_heads.score_thresh = threshold
        (prediction,) = net.predict(files[0])
        assert len(prediction["ious"]) == len(prediction["scores"])
        assert (len(prediction["scores"]) > 0) == some


def test_boxes_are_in_pixels_of_the_image_whatever_the_transform(run, predictor, files):
    """A model that sees every image twice as large finds what one sees in an image that is twice as large."""
    transform = "{_target_: detpool.data.transforms.detection_transform, size: [128, 128]}"
    doubling = detpool.load(run, f"data.eval_transform={transform}", device="cpu")
    samples = [doubling.prepare(files[1])[0][0]]
    (small,), (large,) = doubling.predict(files[1]), predictor.predict(samples)
    torch.testing.assert_close(small["boxes"] * 2, large["boxes"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(small["scores"], large["scores"])
    boxes = torch.tensor([[3.0, 4, 30, 40], [10, 0, 60, 64]])
    torch.testing.assert_close(doubling.pool(files[1], boxes), predictor.pool(samples[0], boxes * 2))


def test_features_and_pooled_features_are_those_of_the_heads(predictor, files):
    seen = {}

    def keep(module, inputs, output):
        seen.setdefault("inputs", inputs)
        seen.setdefault("output", output)

    handle = predictor.model.roi_heads.box_roi_pool.register_forward_hook(keep)
    predictor.predict(files[2])
    handle.remove()
    maps, (proposals,), _ = seen["inputs"]
    (features,) = predictor.features(files[2])
    assert features.keys() == maps.keys()
    assert all(torch.equal(features[name], maps[name][0]) for name in maps)
    torch.testing.assert_close(predictor.pool(files[2], proposals), seen["output"])
    boxes = torch.tensor([[0.0, 8, 8, 40, 40]], requires_grad=True)
    ops.pr_roi_pool(features["0"][None], boxes, 7, 1 / 4).sum().backward()
    assert boxes.grad is not None
    assert boxes.grad.abs().sum() > 0

    own = predictor.model.roi_heads.box_roi_pool
    other = RoIPooler(own.featmap_names, own.output_size, ops.pr_roi_pool, canonical_scale=own.canonical_scale)
    expected = other(maps, [proposals], [(64, 64)])
    assert not torch.allclose(expected, seen["output"])
    for pooler in ("pr_roi_pool", ops.pr_roi_pool, other):
        torch.testing.assert_close(predictor.pool(files[2], proposals, pooler), expected)


def test_a_turned_picture_is_seen_as_it_is_displayed(predictor, files, tmp_path):
    picture = Image.open(files[0]).crop((0, 0, 64, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    expected, turned = predictor.predict([picture, tmp_path / "turned.png"])
    assert all(torch.equal(expected[key], turned[key]) for key in expected)


def test_a_model_that_takes_proposals(compose_tiny, tmp_path, files, predictor):
    given = ["model=fast_rcnn", "head_pool.channels=16", "model.roi_heads.batch_size_per_image=16"]
    config = compose_tiny(tmp_path / "fast", *given, without=["model", "head_pool"])
    config.class_names = list(predictor.class_names)
    fast = detpool.predictor.Predictor(config, runs.build_module(config).model, torch.device("cpu"))
    fast.model.roi_heads.score_thresh = 0.0
    proposals = torch.tensor([[2.0, 3, 30, 40]])
    predictions = fast.predict(files[:2], proposals=[proposals, torch.zeros(0, 4)])
    assert [len(each["scores"]) > 0 for each in predictions] == [True, False]
    with pytest.raises(ConfigError, match=r"takes proposals as given: pass proposals"):
        fast.predict(files[0])
    with pytest.raises(ConfigError, match=r"makes its own proposals: do not pass proposals"):
        predictor.predict(files[0], proposals=[proposals])
    with pytest.raises(ValueError, match=r"each of 2 images, got 1"):
        fast.predict(files[:2], proposals=[proposals])
    with pytest.raises(ValueError, match=r"a list of a tensor for each image, got one \(1, 4\)"):
        fast.predict(files[0], proposals=proposals)
    with pytest.raises(ValueError, match=r"proposals\[0\] must be a tensor \(m, 4\), got \(1, 5\)"):
        fast.predict(files[:1], proposals=[torch.zeros(1, 5)])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (3, TypeError, r"images\[0\] must be a path, .* got int"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"got an array of uint8 \(3, 8, 8\)"),
        (np.zeros((8, 8, 3)), ValueError, r"got an array of float64 \(8, 8, 3\)"),
        (torch.zeros(8, 8, 3), ValueError, r"got a tensor of torch.float32 \(8, 8, 3\)"),
        (torch.full((3, 8, 8), 255.0), ValueError, r"values in 0 .. 1, got 255 .. 255"),
        (torch.full((3, 8, 8), float("nan")), ValueError, r"values in 0 .. 1, got nan .. nan"),
        (Image.new("F", (8, 8)), ValueError, r"images\[0\] must have values of a known range"),
        (torch.zeros(3, 0, 8), ValueError, r"must have pixels, got 0 x 8"),
        ("nowhere.png", DataError, r"nowhere.png: the image does not exist"),
    ],
)
def test_what_is_no_image(predictor, image, error, message):
    with pytest.raises(error, match=message):
        predictor.predict([image])


def test_what_is_no_pooler_or_box(predictor, files):
    with pytest.raises(ValueError, match="did you mean 'roi_align'"):
        predictor.pool(files[0], torch.zeros(1, 4), "roi_algn")
    for boxes, got in ((torch.zeros(1, 5), r"\(1, 5\)"), ([[0, 0, 9, 9]], "list")):
        with pytest.raises(ValueError, match=rf"boxes must be a tensor \(K, 4\), got {got}"):
            predictor.pool(files[0], boxes)
    with pytest.raises(ConfigError, match="scor_thresh.*did you mean 'score_thresh'"):
        detpool.load(predictor.config.run_dir, "model.roi_heads.scor_thresh=1")


def test_the_program_writes_rows_pictures_and_features(run, predictor, files, tmp_path, capsys):
    folder, output = files[0].parent, tmp_path / "out"
    arguments = [f"ckpt_path={run}", f"images={folder}", f"output={output}", f"features={tmp_path}/pooled.npz"]
    tool.main([*arguments, "pictures=2", "score=0.1"])
    assert f"detections in {len(files)} images" in capsys.readouterr().out
    rows = read_results(output / RESULTS)
    assert rows == read_results(run / RESULTS)
    record = json.loads((output / "images.json").read_text())
    assert [image["file_name"] for image in record["images"]] == [str(path) for path in files]
    assert [category["name"] for category in record["categories"]] == predictor.class_names
    pictures = sorted((output / "pictures").iterdir())
    assert [path.name for path in pictures] == [path.name for path in files[:2]]
    assert Image.open(pictures[0]).width > 600

    pooled = np.load(tmp_path / "pooled.npz")
    assert len(pooled["features"]) == len(rows)
    own = pooled["image_ids"] == 3
    expected = predictor.pool(files[2], torch.from_numpy(pooled["boxes"][own]))
    torch.testing.assert_close(torch.from_numpy(pooled["features"][own]), expected)


def test_pooling_is_looked_at_on_the_maps_of_a_run(run, files, tmp_path, capsys):
    where = ["--features", str(run), "--image", str(files[0]), "--stride", "4", "--output", str(tmp_path)]
    for command in ("continuity", "gradients"):
        visualize.main([command, *where, "--operators", "pr_roi_pool", "--box", "28", "28", "34", "33"])
        assert (tmp_path / f"{command}.png").is_file()
    assert "shift error" in capsys.readouterr().out
    for arguments, message in (
        (["--features", str(run)], "--features RUN and --image FILE go together"),
        ([*where[:4], "--stride", "5"], "--stride: stride must be that of a map of the run, 4, 8, 16, 32, got 5"),
        ([*where, "--box", "1", "1", "9", "9"], "the image of 64 x 64 pixels"),
    ):
        with pytest.raises(SystemExit):
            visualize.main(["gradients", *arguments])
        assert message in capsys.readouterr().err


def test_boxes_of_an_annotation_file_are_pooled(run, predictor, files, tmp_path, capsys):
    images = [{"id": 9 - i, "file_name": path.name, "height": 64, "width": 64} for i, path in enumerate(files[:2])]
    boxes = [(8, [1, 2, 30, 20]), (9, [5, 5, 20, 40]), (8, [0, 0, 64, 64])]
    objects = [{"image_id": i, "category_id": 4, "bbox": box} for i, box in boxes]
    truth = {"images": images, "annotations": objects, "categories": [{"id": 4, "name": "thing"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(truth))
    arguments = [f"ckpt_path={run}", f"images={files[0].parent}", f"boxes={tmp_path}/boxes.json"]
    tool.main([*arguments, f"features={tmp_path}/pooled.npz"])
    assert "pooled features of 3 boxes in 2 images" in capsys.readouterr().out
    pooled = np.load(tmp_path / "pooled.npz")
    assert pooled["image_ids"].tolist() == [9, 8, 8]
    assert pooled["labels"].tolist() == [4, 4, 4]
    expected = [
        predictor.pool(files[0], torch.tensor([[5.0, 5, 25, 45]])),
        predictor.pool(files[1], torch.tensor([[1.0, 2, 31, 22], [0, 0, 64, 64]])),
    ]
    torch.testing.assert_close(torch.from_numpy(pooled["features"]), torch.cat(expected))
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert "no value given for features" in capsys.readouterr().err


def test_boxes_are_pooled_from_the_image_that_was_annotated(run, predictor, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / "a.png", exif=exif)
    box = torch.tensor([[2.0, 3, 40, 20]])
    for size, shown in (((48, 64), noise), ((64, 48), np.rot90(noise, -1).copy())):
        images = [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}]
        objects = [{"image_id": 1, "category_id": 4, "bbox": [2, 3, 38, 17]}]
        truth = {"images": images, "annotations": objects, "categories": [{"id": 4, "name": "thing"}]}
        (tmp_path / "boxes.json").write_text(json.dumps(truth))
        arguments = [f"ckpt_path={run}", f"images={tmp_path}", f"boxes={tmp_path}/boxes.json"]
        tool.main([*arguments, f"features={tmp_path}/pooled.npz"])
        pooled = torch.from_numpy(np.load(tmp_path / "pooled.npz")["features"])
        torch.testing.assert_close(pooled, predictor.pool(shown, box))


def test_a_broken_image_ends_the_program_before_it_detects(run, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images/.hidden").mkdir(parents=True)
    shutil.copy(files[0], tmp_path / "images/a.png")
    for hidden in ("images/._a.png", "images/.hidden/a.png"):
        (tmp_path / hidden).touch()
    arguments = [f"ckpt_path={run}", "images=~/images", "output=~/out"]
    tool.main([*arguments, "pictures=0"])
    assert "in 1 images" in capsys.readouterr().out
    assert (tmp_path / "out/images.json").is_file()
    (tmp_path / "images/b.webp").touch()
    monkeypatch.setattr(tool, "detect", None)
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert "images/b.webp: not a readable image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=IMAGES"], "no value given for ckpt_path: pass ckpt_path=..."),
        (["ckpt_path=RUN", "images=nowhere"], "images=nowhere does not exist"),
        (["ckpt_path=RUN", "images=RUN"], "holds no image file"),
        (["ckpt_path=RUN", "images=IMAGES", "feature=x.npz"], "no key or group 'feature'"),
        (["ckpt_path=RUN", "images=IMAGES", "features=x.npy"], "must be a file in .npz, got 'x.npy'"),
    ],
)
def test_wrong_arguments_of_the_program(arguments, message, run, files, capsys):
    words = {"RUN": str(run / "checkpoints"), "IMAGES": str(files[0].parent)}
    with pytest.raises(SystemExit) as end:
        tool.main([f"{key}={words.get(value, value)}" for key, value in (a.split("=") for a in arguments)])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
