"""What a config may name: parts of detectors and of their training, and what a user has named."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from detpool.config import Configs, check, signatures
from detpool.errors import ConfigError, message_of
from detpool.run_config import load_config
from detpool.study.plan import plan_sweep

CONFIGS = Path(__file__).parents[1] / "configs"
WHOLE = Configs(CONFIGS, "train").compose([])


def with_context(node, imports=()):
    """A config whose context is a node."""
    config = WHOLE.copy()
    OmegaConf.set_struct(config, False)
    config.context, config.imports = node, list(imports)
    return config


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    """A package of a user's own, with what packages have in them."""
    for function in (signatures._find, signatures._in_module, signatures._names, signatures._source):
        function.cache_clear()
    folder = tmp_path / "code" / "my_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "import functools, os\n"
        "from subprocess import run\n"
        "from detpool import ops\n"
        "def my_operator(features, rois, output_size, spatial_scale, points: int = 1):\n"
        "    return ops.roi_align(features, rois, output_size, spatial_scale, sampling_ratio=points)\n"
        "rounded = functools.partial(ops.pool, bins='rounded')\n"
        "class Made:\n"
        "    @classmethod\n"
        "    def make(cls):\n"
        "        return cls()\n"
    )
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "raises.py").write_text("x = 1\nx / 0\n")
    monkeypatch.syspath_prepend(folder.parent)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def checked(target, imports=(), **arguments):
    """The message about a config whose context names `target`, "" if it is admitted."""
    node = {"_target_": target, **arguments}
    try:
        check(with_context(node, imports))
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "target",
    [
        *("detpool.ops.roi_align", "detpool.training.schedules.cosine", "detpool.training.callbacks.StepCost"),
        *("torch.nn.Identity", "torch.nn.functional.relu", "torch.optim.AdamW", "torch.optim.lr_scheduler.StepLR"),
        *("torchvision.ops.MultiScaleRoIAlign", "torchvision.transforms.v2.RandomCrop", "torchvision.models.resnet50"),
        *("lightning.Trainer", "lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.loggers.CSVLogger"),
        *("lightning.pytorch.strategies.DDPStrategy", "timm.optim.Lamb", "timm.layers.DropPath"),
    ],
)
def test_parts_of_detectors_and_trainings_are_admitted(target):
    message = checked(target)
    assert "may name" not in message
    assert "public" not in message
    assert "imported" not in message


@pytest.mark.parametrize(
    ("target", "refused"),
    [
        ("os.system", "os"),
        ("subprocess.Popen", "subprocess"),
        ("builtins.eval", "builtins"),
        ("my_package.my_operator", "my_package"),
        ("functools.partial", "functools"),
        ("hydra.utils.instantiate", "hydra"),
        # what an admitted package imports, however deep
        ("torch.os.system", "os"),
        ("torch.nn.functional.importlib.import_module", "importlib"),
        ("torchvision.datasets.utils.os.system", "os"),
        ("lightning.pytorch.trainer.trainer.os.remove", "os"),
        ("detpool.data.coco.Path", "pathlib"),
        ("torchvision.models.resnet.partial", "functools"),
        # what runs code, loads code or starts processes
        ("torch.load", "torch.serialization"),
        ("torch.serialization.load", "torch.serialization"),
        ("torch.hub.load", "torch.hub"),
        ("torch.utils.cpp_extension.load", "torch.utils.cpp_extension"),
        ("torch.utils.collect_env.run", "torch.utils.collect_env"),
        ("torch.jit.load", "torch.jit"),
        ("torch.multiprocessing.spawn", "torch.multiprocessing"),
        ("torch.package.PackageImporter", "torch.package"),
        ("lightning.pytorch.cli.instantiate_class", "lightning.pytorch.cli"),
        ("timm.models.load_state_dict", "timm.models"),
        ("detpool.files.write_text_atomically", "detpool.files"),
    ],
)
def test_everything_else_is_refused_with_its_name_and_how_to_allow_it(target, refused):
    message = checked(target)
    assert message.startswith(f"context._target_={target}")
    assert "is not among what a config may name" in message
    assert f"imports=[{refused}" in message


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.modules.module._global_parameter_registration_hooks",
        "torch.nn.Module.__init__.__globals__",
        "detpool.ops.roi_align.__globals__",
        "lightning.pytorch.strategies.launchers.subprocess_script._SubprocessScriptLauncher",
        # a method, which pickle can be got out of with an object of the class
        "lightning.pytorch.plugins.io.TorchCheckpointIO.load_checkpoint",
        "torch.nn.Module.apply",
        "torch.utils.bottleneck.__main__",  # whose import runs it
    ],
)
def test_private_names_and_methods_are_refused(target):
    message = checked(target)
    assert message.startswith(f"context._target_={target}")
    assert "private" in message or "method" in message


@pytest.mark.parametrize(
    "target", ["", ".", "torch", "torch.nn", "torch..nn", "a b", "torch.nn.Idntity", "os.system()"]
)
def test_names_of_nothing_are_one_message(target):
    assert checked(target).startswith("context._target_")


@pytest.mark.parametrize("target", [None, 3, ["os.system"], {"_target_": "os.system"}])
def test_a_target_that_is_no_text_is_refused(target):
    assert "must be the dotted name of a class or function" in checked(target)


def test_targets_are_found_however_deep_they_lie():
    evil = {"_target_": "os.system", "command": "true"}
    for node in ({"a": evil}, {"a": [1, [evil]]}, {"_args_": [evil]}, {"a": {"b": {"c": evil}}}):
        with pytest.raises(ConfigError, match=r"_target_=os\.system is not among"):
            check(with_context({"_target_": "torch.nn.Identity", **node}))
    with pytest.raises(ConfigError, match=r"_target_=os\.system is not among"):
        check(with_context({"_target_": "${.name}", "name": "os.system"}))
    # made where it is read
    for text in ("${oc.create:{_target_:os.system}}", "${oc.decode:'{_target_: os.system}'}"):
        with pytest.raises(ConfigError, match=r"_target_=os\.system is not among"):
            check(with_context({"_target_": "torch.nn.Identity", "a": text}))
    with pytest.raises(ConfigError, match="must be the dotted name"):
        check(with_context({"_target_": "${hydra:job.name}"}))


@pytest.mark.parametrize("look_up", ["get_method", "get_class", "get_object", "get_static_method"])
def test_what_hydra_looks_up_by_name_is_checked_too(look_up):
    target = f"hydra.utils.{look_up}"
    assert "context.path=os.system is not among" in checked(target, path="os.system")
    assert "context.path=torch.hub.load (defined in torch.hub) is not" in checked(target, _args_=["torch.hub.load"])
    assert "must be the dotted name" in checked(target, path={"_target_": "torch.nn.Identity"})
    assert "must be the dotted name" in checked(target)
    assert "must be the dotted name" in checked(target, _args_=5)
    assert checked(target, path="torch.nn.functional.relu") == ""


def test_a_package_of_ones_own_is_admitted_by_name(my_package, monkeypatch):
    assert "imports=[my_package]" in checked("my_package.my_operator")
    assert "my_package" not in sys.modules, "a package that is not admitted is not imported"
    assert checked("my_package.my_operator", ["my_package"], _partial_=True) == ""
    assert checked("my_package.rounded", ["my_package"], _partial_=True) == ""
    assert checked("my_package.Made.make", ["my_package"]) == ""
    monkeypatch.setenv("DETPOOL_IMPORTS", "json, my_package")
    assert checked("my_package.my_operator", _partial_=True) == ""
    # but not what it imports
    assert "my_package.os.system" in checked("my_package.os.system")
    assert "(defined in subprocess) is not among" in checked("my_package.run")


def test_code_that_cannot_be_imported_is_one_message_with_its_place(my_package):
    assert "broken.py, line 1" in checked("my_package.broken.f", ["my_package"])
    with pytest.raises(InstantiationException) as raised:
        instantiate({"_target_": "my_package.raises.f"})  # importing it is what shows it
    assert "my_package.raises.f" in message_of(raised.value)
    assert "ZeroDivisionError" in message_of(raised.value)
    assert "cannot be imported" in checked("my_package.nothing.f", ["my_package"])


def test_a_run_directory_admits_nothing_by_itself(my_package, tmp_path):
    """`imports` of the command line that trained it is in its config, and means nothing to those who were sent it."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.ckpt").touch()
    OmegaConf.save(with_context({"_target_": "my_package.my_operator"}, ["my_package", "os"]), run / "config.yaml")
    config = load_config(run / "checkpoints" / "best.ckpt")
    with pytest.raises(ConfigError, match="my_package.my_operator is not among"):
        check(config)
    config.imports = ["my_package"]  # as eval.py does for imports=[my_package]
    check(config)
    (run / "config.yaml").write_text("a: [\n")
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read"):
        load_config(run / "checkpoints" / "best.ckpt")


@pytest.fixture
def configs(tmp_path):
    """A copy of the configs, with members of a group that are broken each in a way of its own."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    pooler = tmp_path / "configs" / "pooler"
    operator = (pooler / "roi_align.yaml").read_text()
    (pooler / "absent.yaml").write_text(operator.replace("detpool.ops.roi_align", "nowhere.my_operator"))
    (pooler / "syntax.yaml").write_text(operator.replace("detpool.ops.roi_align", "my_package.broken.f"))
    (pooler / "yaml.yaml").write_text("_target_: [\n")
    (pooler / "bytes.yaml").write_bytes(b"_target_: \xff\xfe\n")
    (pooler / "empty.yaml").write_text("")
    (pooler / "list.yaml").write_text("- 1\n")
    return Configs(tmp_path / "configs", "train")


def test_a_broken_member_breaks_no_other_command(configs, my_package):
    """Each of these once asked every pooler whether it takes a reduction."""
    for line in (["experiment=demo"], ["experiment=demo", "pooler=pool", "reduction=lp"]):
        check(configs.compose(line), configs, line)
    line = ["experiment=demo", "reduction=lp"]
    with pytest.raises(ConfigError, match=r"reduction must be text.*these take it: pooler=pool$"):
        check(configs.compose(line), configs, line)
    with pytest.raises(
        ConfigError,
        match=r"has no mask_pooler; these do: model=cascade_mask_rcnn, mask_rcnn, mask_rcnn_c4, mask_rcnn_c5$",
    ):
        configs.compose(["experiment=demo", "pooler@mask_pooler=roi_pool"])
    assert len(plan_sweep(configs, ["study=smallest"]).names or ()) == 4
    assert "my_package" not in sys.modules


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("absent", r"_target_=nowhere\.my_operator is not among what a config may name"),
        ("yaml", r"pooler/yaml\.yaml"),
        ("bytes", r"can't decode|utf-8"),
        ("list", r"pooler/list"),
        ("empty", "pooler must be an object|the config has no pooler"),
    ],
)
def test_a_broken_member_that_is_chosen_is_one_message(configs, member, message):
    with pytest.raises(ConfigError, match=message):
        check(configs.compose(["experiment=demo", f"pooler={member}"]))


def test_a_study_that_cannot_be_read_is_one_message(configs):
    (configs.folder / "study" / "broken.yaml").write_text("variants: {a: [\n")
    with pytest.raises(ConfigError, match=r"study/broken\.yaml cannot be read"):
        plan_sweep(configs, ["study=broken"])


def test_partials_of_partials_are_what_they_call(my_package):
    with (my_package / "__init__.py").open("a") as file:
        file.write("twice = functools.partial(functools.partial(run))\n")
    assert "(defined in subprocess)" in checked("my_package.twice", ["my_package"])


def test_what_is_admitted_is_what_is_built(my_package):
    """Hydra finds an object by a name as the check does."""
    assert checked("my_package.my_operator", ["my_package"], _partial_=True, points=3) == ""
    built = instantiate({"_target_": "my_package.my_operator", "_partial_": True, "points": 3})
    assert built.keywords == {"points": 3}
    assert "has no argument 'point'" in checked("my_package.my_operator", ["my_package"], point=3)
    assert "points must be a whole number, got 'x'" in checked("my_package.my_operator", ["my_package"], points="x")
