"""Draws pictures of pooling, and writes the numbers shown in them.

    python tools/visualize.py bins --image photo.jpg --box 13.2 9.7 61.4 50.1 --stride 8   # bins, cells, sample points
    python tools/visualize.py continuity --operators roi_pool roi_align:aligned=True       # output as the box slides
    python tools/visualize.py gradients                                                    # where gradients push a box
    python tools/visualize.py gradients --features logs/demo/runs/<timestamp> --image a.jpg --stride 16   # a run's maps
    python tools/visualize.py class_maps logs/demo/runs/<timestamp> --image a.jpg   # which bins speak for a class
    python tools/visualize.py predictions logs/demo/runs/<timestamp> --count 20            # of a finished run

Operators are functions of `detpool.ops` with arguments, such as `pool:sampling=integral,bins=rounded`, or your own
functions, such as `my_package.my_operator`; `--import my_package` imports a module that registers rules by name. All
commands but the last write `<command>.png` and `<command>.csv`; docs/visualization.md explains the pictures and defines
the numbers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.operators import examine, functions_of
from bench.output import Table, write_csv
from command_line import Parser, import_all, natural, one_of, positive, positive_int
from matplotlib.figure import Figure

from detpool.config import check
from detpool.data.images import read_image
from detpool.errors import ConfigError, exit_with_message, writing
from detpool.evaluation.pictures import write_pictures
from detpool.evaluation.results import find_results, read_results
from detpool.run_config import load_config
from detpool.visualization import (
    footprint,
    gradient_field,
    measure_continuity,
    plot_continuity,
    plot_footprints,
    plot_gradient_fields,
)
from detpool.visualization.continuity import GROW, SLIDE
from detpool.visualization.style import save

Numbers = Mapping[str, Mapping[str, float]]
"""A row of named numbers for each operator."""

ROUNDED = ("roi_pool", "roi_warp", "ps_roi_pool")
CONTINUOUS = ("roi_align", "roi_align:aligned=True", "pr_roi_pool")
DIFFERENTIABLE = ("roi_align:aligned=True,sampling_ratio=1", "roi_align:aligned=True", "pr_roi_pool")
MOTIONS = {"slide": SLIDE, "grow": GROW}


MOST_CELLS = 40_000
"""Maximum number of cells of a map in `bins`. So many take 20 seconds and a gigabyte; costs grow superlinearly."""


def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    with exit_with_message():
        options.run(options)


def bins(options: argparse.Namespace) -> None:
    """Draws what each operator reads for a box."""
    box, stride, image = _box(options), options.stride, None
    if options.image is None:
        # Leave room for operators that round boxes outward and read one more cell.
        width, height = (edge + 3 * stride for edge in box[2:])
    else:
        image = read_image(options.image)
        height, width = image.shape[-2:]
    if min(box[2:]) <= 0 or box[0] >= width or box[1] >= height:
        of = f" {options.image}, which is {width} pixels wide and {height} high" if options.image else ""
        raise ConfigError(f"--box {' '.join(f'{edge:g}' for edge in box)} lies outside the image{of}")
    cells = (int(-(-height // stride)), int(-(-width // stride)))
    if cells[0] * cells[1] > MOST_CELLS:
        raise ConfigError(
            f"a map of {cells[0]} x {cells[1]} cells is more than can be drawn ({MOST_CELLS} cells): "
            "give a larger --stride"
        )
    found = _of_each(options, lambda op, where: footprint(op, box, tuple(options.bins), cells, stride))
    numbers = {
        name: {"cells per bin": f.cells, "off right, px": f.offset[0], "off down, px": f.offset[1]}
        for name, f in found.items()
    }
    _report(options, plot_footprints(found, image), numbers)


def continuity(options: argparse.Namespace) -> None:
    """Draws how the output of each operator changes as the box moves."""
    motion, features = MOTIONS[options.motion], _features(options)
    found = _of_each(options, lambda op, where: measure_continuity(op, **where, motion=motion, features=features))
    numbers = {
        name: {
            "J, coarse": c.jumps[0],
            "J, fine": c.jumps[1],
            "discontinuity": c.discontinuity,
            "kink, / px": c.kink,
            "shift error": c.shift_error,
        }
        for name, c in found.items()
    }
    _report(options, plot_continuity(found), numbers)


def gradients(options: argparse.Namespace) -> None:
    """Draws where the gradients of each operator push a box."""
    features = _features(options)
    found = _of_each(options, lambda op, where: gradient_field(op, **where, reach=options.reach, features=features))
    numbers = {name: {"alignment": f.alignment, "astray": f.astray} for name, f in found.items()}
    _report(options, plot_gradient_fields(found), numbers)


def _features(options: argparse.Namespace) -> Any:
    """Features of a run for an image, if the options ask for them; else None, for generated waves."""
    if (options.features is None) != (options.image is None):
        raise ConfigError(
            "--features RUN and --image FILE go together: the run's feature map of the image is looked at"
        )
    if options.features is None:
        return None
    from detpool.predictor import load  # takes seconds
    from detpool.visualization.features import CHANNELS, ImageFeatures

    image = read_image(options.image)
    try:
        return ImageFeatures(load(options.features), image, options.stride, CHANNELS)
    except ValueError as error:
        raise ConfigError(f"--stride: {error}") from error


def class_maps(options: argparse.Namespace) -> None:
    """Draws class activation maps of a run's detections in an image; the run needs head_pool=class_maps."""
    from detpool.predictor import load  # takes seconds
    from detpool.visualization.class_maps import find_class_maps, plot_class_maps

    image = read_image(options.image)
    imports = [f"imports=[{','.join(options.imports)}]"] if options.imports else []
    try:
        found = find_class_maps(load(options.run_dir, *imports), image, options.score)
    except ValueError as error:
        raise ConfigError(f"{options.run_dir}, {options.image}: {error}") from error
    numbers = {
        f"{number}: {each.name}": {
            "score": each.score,
            "logit": float(each.map.mean()),
            "lowest bin": float(each.map.min()),
            "highest bin": float(each.map.max()),
        }
        for number, each in enumerate(found, 1)
    }
    _report(options, plot_class_maps(found, image), numbers, "detection")


def predictions(options: argparse.Namespace) -> None:
    """Draws predictions of a finished run next to the ground truth."""
    config_file, rows_file = options.run_dir / "config.yaml", find_results(options.run_dir)
    for file in (config_file, rows_file):
        if not file.is_file():
            raise ConfigError(f"{file} does not exist: is {options.run_dir} the directory of a finished run?")
    from detpool.training.runs import build_data  # takes seconds: only after the files are known to exist

    config = load_config(options.run_dir)
    config.imports = options.imports
    check(config)
    data = build_data(config)
    dataset = data.val_dataset if config.evaluation.split == "val" else data.test_dataset
    folder = options.output or options.run_dir / "pictures"
    try:
        rows = read_results(rows_file)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    masks = "segm" in config.evaluation.iou_types
    with writing(folder):
        paths = write_pictures(folder, dataset, rows, limit=options.count, score_threshold=options.score, masks=masks)
    print(f"{len(paths)} pictures in {folder}")


def _of_each(options: argparse.Namespace, look: Callable) -> dict:
    """Returns the results of `look(operator, where)` by operator name; errors name the operator."""
    import_all(options.imports)
    functions, found, box = functions_of(), {}, _box(options)
    for name in options.operators:
        try:
            operator = examine(name, functions)
            if options.run is not bins and operator.needs_offsets:
                raise ValueError(
                    "its bins move by offsets that here each box draws anew, so that moving it tells nothing"
                )
            where = {"box": box, "output_size": tuple(options.bins), "stride": options.stride}
            where["position_sensitive"] = operator.position_sensitive
            found[name] = look(operator.bind(options.sampling_ratio, None), where)
        except ValueError as error:
            raise ConfigError(f"--operators {name}: {error}") from error
    return found


def _box(options: argparse.Namespace) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = options.box
    if not (x1 < x2 and y1 < y2):
        raise ConfigError(f"--box must have x1 < x2 and y1 < y2, got {x1:g} {y1:g} {x2:g} {y2:g}")
    if not all(map(math.isfinite, options.box)):
        raise ConfigError(f"--box must be finite, got {x1:g} {y1:g} {x2:g} {y2:g}")
    return x1, y1, x2, y2


def _report(options: argparse.Namespace, figure: Figure, numbers: Numbers, of: str = "operator") -> None:
    """Write the picture to `<command>.png` and the numbers to a CSV file beside it, and print them."""
    table = Table(options.command, [of], list(next(iter(numbers.values()))))
    for name, row in numbers.items():
        # + 0.0 avoids "-0.0000"
        table.add_row(name, *(f"{round(value, 4) + 0.0:.4f}" for value in row.values()))
    with writing(options.output):
        save(figure, options.output / f"{options.command}.png")
        write_csv(options.output / f"{options.command}.csv", [{of: n, **row} for n, row in numbers.items()])
    print(table)
    print(f"{options.output / options.command}.png and .csv")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for run, operators in (
        (bins, (*ROUNDED, *CONTINUOUS)),
        (continuity, (*ROUNDED, *CONTINUOUS[1:])),
        (gradients, DIFFERENTIABLE),
    ):
        add = _command(commands, run).add_argument
        add("--operators", nargs="+", default=operators, metavar="NAME[:KEY=VALUE,...]", help=f"default: {operators}")
        add("--box", nargs=4, type=float, default=[13.2, 9.7, 61.4, 50.1], metavar=("X1", "Y1", "X2", "Y2"))
        add("--stride", type=positive, default=8.0, metavar="PX", help="pixels per feature cell; default: 8")
        add("--bins", nargs=2, type=positive_int, default=[3, 3], metavar=("ROWS", "COLUMNS"), help="default: 3 3")
        text = "points per bin along each axis, where points are sampled; 0: as many as it has cells; default: 2"
        add("--sampling-ratio", type=natural, default=2, metavar="N", help=text)
        add("--output", type=Path, default=Path("logs/visualize"), metavar="FOLDER", help="default: logs/visualize")
        text = "to draw under the cells" if run is bins else "whose features are looked at, with --features"
        add("--image", type=Path, metavar="FILE", help=text)
        if run is not bins:
            add(
                "--features", type=Path, metavar="RUN", help="a run directory, in place of waves; --stride: of its maps"
            )
        if run is continuity:
            text = "slide or grow: of the box, to the right; default: slide"
            add("--motion", type=one_of(MOTIONS), default="slide", metavar="NAME", help=text)
        elif run is gradients:
            add("--reach", type=positive, default=3.0, metavar="CELLS", help="on each side; default: 3")
    add = _command(commands, class_maps).add_argument
    add("run_dir", type=Path, help="a run directory, or a checkpoint in one")
    add("--image", type=Path, required=True, metavar="FILE")
    add("--score", type=float, default=0.5, metavar="S", help="lowest of a detection; default: 0.5")
    add("--output", type=Path, default=Path("logs/visualize"), metavar="FOLDER", help="default: logs/visualize")
    add = _command(commands, predictions).add_argument
    add("run_dir", type=Path, help="a run directory, logs/<task>/runs/<timestamp>")
    add("--count", type=positive_int, default=12, metavar="N", help="images, spread over the data set; default: 12")
    add("--score", type=float, default=0.5, metavar="S", help="lowest to draw; default: 0.5")
    add("--output", type=Path, metavar="FOLDER", help="default: pictures/ in the run directory")
    return parser.parse_args(argv)


def _command(commands: argparse._SubParsersAction, run: Callable) -> Parser:
    parser = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
    parser.set_defaults(run=run)
    parser.add_imports()
    return parser


if __name__ == "__main__":
    main()
