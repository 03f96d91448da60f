"""What a sweep consists of, found and checked before its first run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from detpool.config import Configs
from detpool.errors import ConfigError
from detpool.study.launching import launch
from detpool.study.layout import fingerprint, read_plan, run_name, write_plan
from detpool.study.plan import Sweep, place_of, plan_sweep

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
STUDIES = sorted(path.stem for path in CONFIGS.glob("study/*.yaml"))


ALL = Configs(CONFIGS, "train")


def composed(*overrides: str) -> DictConfig:
    return ALL.compose(["run_dir=run", *overrides])


@pytest.fixture
def with_study(tmp_path: Path) -> Callable[[str], Path]:
    """`with_study(text)`: a copy of the configs with a study `mine` of this content, below its usual header."""

    def write(text: str) -> Path:
        folder = tmp_path / "configs"
        shutil.copytree(CONFIGS, folder)
        header = "# @package _global_\ndefaults:\n  - override /experiment: demo\n"
        (folder / "study" / "mine.yaml").write_text(header + text)
        return folder

    return write


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_begins_with_its_command_and_can_be_planned(study: str) -> None:
    lines = (CONFIGS / "study" / f"{study}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# python train.py -m study={study}")
    needed = ["data.root=somewhere"] if "data.root=" in lines[1] else []
    sweep = plan_sweep(ALL, [f"study={study}", "seed=0", *needed])
    assert sweep.folder == Path("logs") / study
    assert sweep.names is not None
    assert len(sweep.names) > 1


def test_runs_of_the_smallest_study() -> None:
    sweep = plan_sweep(ALL, ["study=smallest"])
    assert sweep.names is not None
    assert [name.rpartition("-")[0] for name in sweep.names] == [
        f"pooler={pooler},seed={seed}" for pooler in ("roi_pool", "pr_roi_pool") for seed in (0, 1)
    ]
    # The command line comes last; another config is another run, in a folder of its own.
    other = plan_sweep(ALL, ["study=smallest", "seed=1,2", "trainer.max_epochs=4"]).names
    assert other is not None
    assert [name.rpartition("-")[0] for name in other] == [
        f"pooler={pooler},seed={seed}" for pooler in ("roi_pool", "pr_roi_pool") for seed in (1, 2)
    ]
    assert not {name.rpartition("-")[2] for name in sweep.names} & {name.rpartition("-")[2] for name in other}
    assert plan_sweep(ALL, ["study=smallest", "hydra.sweep.dir=a/b"]).folder == Path("a/b")


def test_sweeps_without_study_are_numbered() -> None:
    sweep = plan_sweep(ALL, ["experiment=demo", "pooler=roi_pool,roi_align", "seed=range(0,3)"])
    assert sweep.names == ["0", "1", "2", "3", "4", "5"]
    assert sweep.folder.parts[:3] == ("logs", "demo", "multiruns")


def test_numbered_runs_are_not_taken_for_others(tmp_path: Path) -> None:
    """Another seed moves the numbers of those after it."""
    arguments = ["experiment=demo", "pooler=roi_pool,roi_align", f"hydra.sweep.dir={tmp_path}"]
    for number, pooler in enumerate(("roi_pool", "roi_align")):
        (tmp_path / str(number)).mkdir()
        config = composed("experiment=demo", f"pooler={pooler}")
        config.run_dir = str(tmp_path / str(number))
        (tmp_path / str(number) / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    assert plan_sweep(ALL, arguments).names == ["0", "1"]
    with pytest.raises(ConfigError, match=f"{tmp_path / '1'} holds a run of another config: a sweep is resumed by"):
        plan_sweep(ALL, [*arguments, "seed=0,1"])


@pytest.mark.parametrize(
    ("same", "overrides"),
    [
        (True, ["run_dir=elsewhere", "task=x", "progress=false", "logger=tensorboard", "ckpt_path=a.ckpt"]),
        (True, ["data.num_workers=0", "evaluation.pictures=0", "keep_checkpoints=all"]),
        (False, ["seed=1"]),
        (False, ["trainer.max_epochs=3"]),
        (False, ["data.batch_size=2"]),
        (False, ["evaluation.split=val"]),
        (False, ["pooler=roi_pool"]),
        (False, ["callbacks.best.mode=min"]),
    ],
)
def test_fingerprint_is_of_what_is_computed(same: bool, overrides: list[str]) -> None:
    assert (fingerprint(composed(*overrides)) == fingerprint(composed())) == same


def test_runs_of_before_a_setting_keep_their_names() -> None:
    config = composed()
    name = fingerprint(config)
    OmegaConf.set_struct(config, False)
    later = (("model", "weights"), ("optim", "backbone_rate"), ("optim", "frozen"), ("evaluation", "diagnostics"))
    for section, key in later:
        assert key in config[section]
        del config[section][key]
    assert fingerprint(config) == name
    config.optim.backbone_rate = 0.1
    assert fingerprint(config) != name


def test_names_show_what_varies_and_suit_a_file_system() -> None:
    config = composed()
    overrides = ["study=x", "data.size=[64,96]", "seed=0", "trainer.max_epochs=1"]
    assert run_name(overrides, ["data.size", "seed"], config) == f"data.size=_64,96_,seed=0-{fingerprint(config)}"
    assert run_name(overrides, [], config) == fingerprint(config)
    assert len(run_name(["seed=" + "1" * 500], ["seed"], config)) < 120


def test_variants_are_whole_configurations(with_study: Callable[[str], Path]) -> None:
    configs = with_study(
        "variants:\n"
        "  a: pooler=roi_pool\n"
        "  b: pooler=roi_align pooler.operator.reduction=max evaluation.max_dets=[1,10,50] seed=7\n"
        "  c: model=mask_rcnn mask_pooler=roi_pool +model.roi_heads.fg_iou_thresh=0.6\n"
        "hydra: {sweeper: {params: {variant: 'a,b,c'}}}\n"
    )
    names = plan_sweep(Configs(configs, "train"), ["study=mine"]).names
    assert names is not None
    # What the command line would have given.
    common = ["experiment=demo"]
    for name, variant, overrides in zip(
        names,
        "abc",
        [
            ["pooler=roi_pool"],
            ["pooler=roi_align", "pooler.operator.reduction=max", "evaluation.max_dets=[1,10,50]", "seed=7"],
            ["model=mask_rcnn", "pooler@mask_pooler=roi_pool", "+model.roi_heads.fg_iou_thresh=0.6"],
        ],
        strict=True,
    ):
        assert name == f"variant={variant}-{fingerprint(composed(*common, *overrides))}"


def test_a_study_on_top_of_another_has_its_variants(with_study: Callable[[str], Path]) -> None:
    configs = with_study(
        "variants: {a: pooler=roi_pool, b: pooler=roi_align}\nhydra: {sweeper: {params: {variant: 'a,b'}}}\n"
    )
    derived = (
        "# @package _global_\ndefaults: [mine, _self_]\noptim: {optimizer: {lr: 0.1}}\nvariants: {b: pooler=roi_warp}\n"
    )
    (configs / "study" / "derived.yaml").write_text(derived)
    common = ["experiment=demo", "optim.optimizer.lr=0.1"]
    expected = [
        f"variant={variant}-{fingerprint(composed(*common, f'pooler={pooler}'))}"
        for variant, pooler in (("a", "roi_pool"), ("b", "roi_warp"))
    ]
    assert plan_sweep(Configs(configs, "train"), ["study=derived"]).names == expected


PARAMS = "hydra: {sweeper: {params: {%s}}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PARAMS % "pooler: 'roi_pool,roi_algn'", "pooler=roi_algn does not exist; did you mean 'roi_align'?"),
        (PARAMS % "trainer.max_epoch: '1,2'", "Trainer has no argument 'max_epoch'; did you mean 'max_epochs'?"),
        ("trainr: {max_epochs: 1}\n" + PARAMS % "seed: '0,1'", "no key or group 'trainr'; did you mean 'trainer'?"),
        ("pooler: {operator: {sampling_rato: 2}}\n", "has no argument 'sampling_rato'; did you mean 'sampling_ratio'?"),
        (
            PARAMS % "pooler: 'roi_align,roi_pool', pooler.operator.aligned: 'true,false'",
            "roi_pool has no argument 'aligned'",
        ),
        (
            "variants: {a: pooler=roi_pol}\n" + PARAMS % "variant: 'a'",
            "variant a of study mine: pooler=roi_pol does not",
        ),
        ("variants: {ab: seed=1}\n" + PARAMS % "variant: 'ab,ac'", "variant=ac does not exist; did you mean 'ab'?"),
        ("variants: {a b: seed=1}\n", "names of variants have letters, digits, _ and - only, got 'a b'"),
        ("variants: {a: 'seed=1,2'}\n", "variant a of study mine: 'seed=1,2' is not a plain key=value"),
        ("variants: [a]\n", "study mine: variants must be a mapping"),
        (PARAMS % "variant: 'a'", "variant=a: only a study has variants, and not every one"),
        (PARAMS % "data.num_workers: '0,1'", "two runs of the study are the same"),
        (PARAMS % "seed: '0,1,0'", "two runs of the study are the same"),
    ],
)
def test_typos_in_a_study_are_named_before_any_work(with_study: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_sweep(Configs(with_study(text), "train"), ["study=mine"])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study=smalest"], "study=smalest does not exist; did you mean 'smallest'?"),
        (["study=smallest,roi_align"], "give one study: study=NAME"),
        (["study=smallest", "poolr=roi_pool"], "no key or group 'poolr'; did you mean 'pooler'?"),
        (["variant=a"], "variant=a: only a study has variants"),
        (["run_dir=x", "seed=0,1"], "run_dir=x: runs of a sweep have folders of their own, in hydra.sweep.dir"),
        (["study=smallest", "trainer=ddp"], "trainer.devices must be 1, got 'auto'"),
        (["study=smallest", "launcher=jobli"], "launcher=jobli does not exist; did you mean 'joblib'?"),
    ],
)
def test_typos_of_a_command_line_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_sweep(ALL, arguments)
    assert message in str(error.value)


def test_missing_plugins_name_their_extra(tmp_path: Path) -> None:
    """A launcher that nobody has, under the name of one that has an extra."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    text = (CONFIGS / "launcher" / "ray.yaml").read_text()
    for name, message in {
        "ray": r"the launcher ray is not installed: pip install 'detpool\[ray\]'",
        "rai": "hydra/launcher=rai does not exist; did you mean 'ray'",
    }.items():
        if name == "ray" and _has_ray():
            continue
        (tmp_path / "configs" / "launcher" / "ray.yaml").write_text(text.replace("launcher: ray", f"launcher: {name}"))
        with pytest.raises(ConfigError, match=message):
            Configs(tmp_path / "configs", "train").compose(["launcher=ray"])


def _has_ray() -> bool:
    try:
        import hydra_plugins.hydra_ray_launcher  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture
def compositions(monkeypatch):
    """The calls of what takes Hydra long."""
    calls = []
    compose = ConfigLoaderImpl.load_configuration

    def counted(self, *arguments, **keywords):
        calls.append(arguments)
        return compose(self, *arguments, **keywords)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    return calls


def test_each_choice_is_composed_once_and_handed_on_to_hydra(compositions):
    """Twelve runs of four choices: what Hydra's launcher loads is what was planned."""
    configs = Configs(CONFIGS, "train")
    planned = plan_sweep(configs, ["study=context"])
    assert planned.names is not None
    assert len(planned.names) == 12
    assert len(compositions) == 1 + 4
    before = len(compositions)
    varied = list(planned.config.hydra.sweeper.params)
    for job, name in zip(planned.jobs, planned.names, strict=True):
        config = configs.load_sweep_config(planned.config, job)
        assert f"seed={config.seed}" in job
        assert run_name(job, varied, config) == name
    assert len(compositions) == before


def test_seeds_are_replaced_where_they_are_the_last_word(with_study):
    """What a variant that stands after the seed says of it, and what refers to it, is as Hydra would compose it."""
    text = (
        "data: {seed: '${seed}'}\n"
        "variants: {a: trainer.max_epochs=3, b: seed=7}\n"
        "hydra: {sweeper: {params: {seed: '1,2', variant: 'a'}}}\n"
    )
    configs = Configs(with_study(text), "train")
    names = plan_sweep(configs, ["study=mine"]).names
    assert names is not None
    for name, seed in zip(names, (1, 2), strict=True):
        settings = [f"seed={seed}", f"data.seed={seed}", "trainer.max_epochs=3"]
        assert name.endswith(fingerprint(composed("experiment=demo", *settings)))
    with pytest.raises(ConfigError, match="two runs of the study are the same"):
        plan_sweep(configs, ["study=mine", "variant=b"])


def test_finished_runs_are_recognised_without_being_composed(with_study, compositions, tmp_path):
    """Only as long as all that they were composed of is the same."""
    folder = with_study("hydra: {sweeper: {params: {seed: '0,1,2'}}}\n")
    arguments = ["study=mine", f"hydra.sweep.dir={tmp_path / 'logs'}"]

    def plan(*further):
        del compositions[:]
        sweep = plan_sweep(Configs(folder, "train"), [*arguments, *further])
        write_plan(sweep.folder, sweep.names, sweep.command_lines, sweep.inputs)
        return sweep

    first = plan()
    for name in first.names:
        (first.folder / name).mkdir()
        (first.folder / name / "metrics.json").write_text('{"metrics": {"AP": 0.5}}')
    assert len(first.jobs) == 3
    assert not plan().jobs
    assert len(compositions) == 1  # what the sweep consists of
    # A run whose metrics cannot be read is to be done; the others are not.
    (first.folder / first.names[1] / "metrics.json").write_text("{")
    assert plan().jobs == [first.jobs[1]]
    assert len(compositions) == 2
    # More seeds are further runs, and other settings are other runs.
    assert [job[0] for job in plan("seed=0,1,2,3").jobs] == ["seed=1", "seed=3"]
    assert len(plan("trainer.max_epochs=3").jobs) == 3
    # A file that changes in what is computed: all of them are other runs; in what is not: all are the same.
    file = folder / "experiment" / "demo.yaml"
    text = file.read_text()
    file.write_text(text + "channels_last: false\n")
    assert len(plan().jobs) == 3
    file.write_text(text + "progress: false\n")
    assert len(plan().jobs) == 1
    assert len(compositions) == 2


def test_launchers_are_handed_what_is_to_be_done(monkeypatch):
    """Any launcher, SLURM's too, in batches if the user wants them; none is made for nothing."""
    handed = []

    class Launcher:
        def launch(self, job_overrides, initial_job_idx):
            handed.append((list(job_overrides), initial_job_idx))
            return []

    monkeypatch.setattr(Plugins.instance(), "instantiate_launcher", lambda **_: Launcher())
    jobs = [[f"seed={seed}"] for seed in range(5)]
    for batches in ("null", "2"):
        config = ALL.load_configuration("train", [f"hydra.sweeper.max_batch_size={batches}"], RunMode.MULTIRUN)
        launch(Sweep(Path("logs"), config, ["a"] * 7, jobs, is_study=True), ALL, print)
    assert handed == [(jobs, 0), (jobs[:2], 0), (jobs[2:4], 2), (jobs[4:], 4)]
    launch(Sweep(Path("logs"), config, ["a"] * 7, [], is_study=True), ALL, print)
    assert len(handed) == 4


def test_what_the_environment_may_change_is_composed_anew(with_study, tmp_path, monkeypatch):
    folder = with_study("seed: ${oc.decode:${oc.env:SEED}}\nhydra: {sweeper: {params: {pooler: roi_pool}}}\n")
    monkeypatch.setenv("SEED", "1")
    sweep = plan_sweep(Configs(folder, "train"), ["study=mine", f"hydra.sweep.dir={tmp_path / 'logs'}"])
    assert sweep.inputs is None
    sweep = plan_sweep(ALL, ["study=smallest", "task='${oc.env:SEED}'", "pooler=roi_pool", "seed=0"])
    assert sweep.inputs is None


def test_a_second_start_with_other_seeds_adds_to_the_plan(tmp_path):
    write_plan(tmp_path, ["seed=0", "seed=1"])
    write_plan(tmp_path, ["seed=1", "seed=2"])
    assert read_plan(tmp_path) == ["seed=0", "seed=1", "seed=2"]


def test_the_place_of_a_run_counts_all_runs_of_its_sweep(tmp_path):
    write_plan(tmp_path, ["seed=0", "seed=1", "seed=2"])
    hydra = ALL.load_configuration("train", ["hydra.job.num=4"], RunMode.MULTIRUN).hydra
    assert place_of(str(tmp_path / "seed=1"), hydra) == "2 of 3"
    # A sweeper chooses runs as it goes; Optuna knows how many.
    assert place_of(str(tmp_path / "4"), hydra) == "5"
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="detpool[optuna] is not installed")
    line = ["hydra.job.num=4", "sweeper=optuna", "hydra.sweeper.n_trials=20"]
    assert place_of(str(tmp_path / "4"), ALL.load_configuration("train", line, RunMode.MULTIRUN).hydra) == "5 of 20"
