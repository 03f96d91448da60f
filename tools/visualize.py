"""Pictures of pooling, with numbers beside them.

    python tools/visualize.py bins --image photo.jpg --box 13.2 9.7 61.4 50.1 --stride 8   # bins, cells, sample points
    python tools/visualize.py continuity --operators roi_pool roi_align:aligned=True       # output as the box slides
    python tools/visualize.py gradients                                                    # where gradients push a box
    python tools/visualize.py predictions logs/demo/runs/<timestamp> --count 20            # of a finished run

Operators are functions of `detpool.ops` with arguments, such as `pool:sampling=integral,bins=rounded`. The first three
write `<command>.png` and `<command>.csv`; docs/visualization.md says what they show and how the numbers are defined.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench.operators import Operator, examine, functions_of
from bench.output import console
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.table import Table

from detpool.data.images import image_size, read_image
from detpool.errors import ConfigError, exit_with_message, writing
from detpool.evaluation.pictures import write_pictures
from detpool.evaluation.results import read_results
from detpool.files import write_text_atomically
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
"""Of a map in `bins`, which takes 20 seconds and a gigabyte for so many, and more than in proportion for more."""


def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    with exit_with_message():
        options.run(options)


def bins(options: argparse.Namespace) -> None:
    """What each operator reads for a box."""
    box, stride, image = _box(options), options.stride, None
    if options.image is None:
        # Room for operators that round boxes outwards and read a cell further.
        width, height = (edge + 3 * stride for edge in box[2:])
    else:
        height, width = image_size(options.image)
        image = read_image(options.image, (height, width))
    if min(box[2:]) <= 0 or box[0] >= width or box[1] >= height:
        of = f" {options.image}, which is {width} pixels wide and {height} high" if options.image else ""
        raise ConfigError(f"--box {' '.join(f'{edge:g}' for edge in box)} lies outside the image{of}")
    cells = (int(-(-height // stride)), int(-(-width // stride)))
    if cells[0] * cells[1] > MOST_CELLS:
        raise ConfigError(
            f"a map of {cells[0]} x {cells[1]} cells is more than can be drawn ({MOST_CELLS} cells): "
            "give a larger --stride"
        )
    found = _of_each(options, lambda op: footprint(_bound(op, options), box, tuple(options.bins), cells, stride))
    numbers = {
        name: {"cells a bin": f.cells, "off right, px": f.offset[0], "off down, px": f.offset[1]}
        for name, f in found.items()
    }
    _report(options, plot_footprints(found, image), numbers)


def continuity(options: argparse.Namespace) -> None:
    """How each operator's output moves with the box."""
    found = _of_each(
        options,
        lambda op: measure_continuity(
            _bound(op, options),
            _box(options),
            tuple(options.bins),
            options.stride,
            motion=MOTIONS[options.motion],
            position_sensitive=op.position_sensitive,
        ),
    )
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
    """Where the gradients of each operator push a box."""
    found = _of_each(
        options,
        lambda op: gradient_field(
            _bound(op, options),
            _box(options),
            tuple(options.bins),
            options.stride,
            reach=options.reach,
            position_sensitive=op.position_sensitive,
        ),
    )
    _report(
        options,
        plot_gradient_fields(found),
        {name: {"alignment": f.alignment, "astray": f.astray} for name, f in found.items()},
    )


def predictions(options: argparse.Namespace) -> None:
    """Predictions of a finished run beside the ground truth."""
    config_file, rows_file = options.run_dir / "config.yaml", options.run_dir / "predictions.json"
    for file in (config_file, rows_file):
        if not file.is_file():
            raise ConfigError(f"{file} does not exist: is {options.run_dir} the directory of a finished run?")
    from detpool.training.runs import build_data  # takes seconds: not before the files are known to be there

    config = OmegaConf.load(config_file)
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


def _bound(operator: Operator, options: argparse.Namespace) -> Callable:
    return operator.bind(options.sampling_ratio, None)


def _of_each(options: argparse.Namespace, look: Callable) -> dict:
    """What `look` finds in each operator, by its name; an error names the operator."""
    functions, found = functions_of(), {}
    for name in options.operators:
        try:
            operator = examine(name, functions)
            if options.run is not bins and "offsets" in inspect.signature(operator.function).parameters:
                raise ValueError(
                    "its bins move by offsets that here each box draws anew, so that moving it tells nothing"
                )
            found[name] = look(operator)
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


def _report(options: argparse.Namespace, figure: Figure, numbers: Numbers) -> None:
    """Write the picture to `<command>.png` and the numbers to a CSV file beside it, and print them."""
    columns = list(next(iter(numbers.values())))
    text, table = io.StringIO(), Table(title=options.command)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["operator", *columns])
    for column in ("operator", *columns):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for name, row in numbers.items():
        writer.writerow([name, *row.values()])
        # + 0.0: no "-0.0000"
        table.add_row(name, *(f"{round(value, 4) + 0.0:.4f}" for value in row.values()))
    with writing(options.output):
        save(figure, options.output / f"{options.command}.png")
        write_text_atomically(options.output / f"{options.command}.csv", text.getvalue())
    console().print(table)
    print(f"{options.output / options.command}.png and .csv")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for run, operators in (
        (bins, (*ROUNDED, *CONTINUOUS)),
        (continuity, (*ROUNDED, *CONTINUOUS[1:])),
        (gradients, DIFFERENTIABLE),
    ):
        add = _command(commands, run).add_argument
        add("--operators", nargs="+", default=operators, metavar="NAME[:KEY=VALUE,...]", help=f"default: {operators}")
        add("--box", nargs=4, type=float, default=[13.2, 9.7, 61.4, 50.1], metavar=("X1", "Y1", "X2", "Y2"))
        add("--stride", type=_positive, default=8.0, metavar="PX", help="pixels a feature cell; default: 8")
        add("--bins", nargs=2, type=_count, default=[3, 3], metavar=("ROWS", "COLUMNS"), help="default: 3 3")
        add(
            "--sampling-ratio",
            type=int,
            default=2,
            metavar="N",
            help="points a bin along each axis, where points are sampled; 0: as many as it has cells; default: 2",
        )
        add("--output", type=Path, default=Path("logs/visualize"), metavar="FOLDER", help="default: logs/visualize")
        if run is bins:
            add("--image", type=Path, metavar="FILE", help="to draw under the cells")
        elif run is continuity:
            add("--motion", choices=MOTIONS, default="slide", help="of the box, to the right; default: slide")
        else:
            add("--reach", type=_positive, default=3.0, metavar="CELLS", help="on each side; default: 3")
    add = _command(commands, predictions).add_argument
    add("run_dir", type=Path, help="a run directory, logs/<task>/runs/<timestamp>")
    add("--count", type=_count, default=12, metavar="N", help="images, spread over the data set; default: 12")
    add("--score", type=float, default=0.5, metavar="S", help="lowest to draw; default: 0.5")
    add("--output", type=Path, metavar="FOLDER", help="default: pictures/ in the run directory")
    return parser.parse_args(argv)


def _command(commands: argparse._SubParsersAction, run: Callable) -> argparse.ArgumentParser:
    parser = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
