"""The arguments and options of all verbs: names, help, and how their texts are read.

An option that several verbs have stands here once and means the same everywhere.
"""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from ..images.shapes import MAX_PIXELS
from ..methods import METHODS


def parse_names(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def parse_tables(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise BadParameter(f"{text!r} are not numbers of tables: write 2,5,7") from None


def parse_sizes(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadParameter(f"{text!r} is not a size: write 448, or 256,448") from None


def parse_window(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise BadParameter(f"{text!r} is not a window: write two numbers, 0,4095") from None
    return low, high


def parse_share(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise BadParameter(f"{text!r} is not a share: write 5% or 0.05") from None


def _parse_count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadParameter(
            f"{text!r} is not a number of images: write 20, or a share as --expect 5%"
        ) from None


def _output(metavar: str, help: str) -> Any:
    return Option("--output", "-o", metavar=metavar, help=help)


# --- What is scored, and where the results go -----------------------------------------------------

_IMAGES = "Folders, files, globs, fsspec URLs."
Inputs = Annotated[list[str], Argument(metavar="INPUT", help=_IMAGES)]
Images = Annotated[list[str], Argument(metavar="IMAGE", help=_IMAGES)]
RunFolder = Annotated[str, Argument(metavar="RUN", help="The folder that a scan wrote.")]
RunOutput = Annotated[str | None, _output("RUN", "Run folder; default: INPUT's name with -run.")]
DemoOutput = Annotated[str, _output("DIR", "Folder for the images and the run.")]
Add = Annotated[
    list[str] | None, Option(metavar="INPUT", help="Folder, file, glob or URL; can be repeated.")
]
Remove = Annotated[
    list[str] | None,
    Option(metavar="NAME", help="Path, end of a path, or pattern; can be repeated."),
]
Overwrite = Annotated[bool, Option(help="Replace the scan in RUN.")]
DryRun = Annotated[bool, Option("--dry-run", help="Print the predicted time and memory, and stop.")]

# --- How images are scored ------------------------------------------------------------------------

Preset = Annotated[
    str | None,
    Option(help="default, fast, best, or paper (WideResNet50: its weights not included)."),
]
MethodName = Annotated[str | None, Option(help=f"{', '.join(METHODS)}.")]
Backbone = Annotated[str | None, Option(help="Name of any timm network.")]
Weights = Annotated[
    str | None, Option(metavar="FILE", help="Weights of the backbone, .safetensors or .pth.")
]
Size = Annotated[
    str | None,
    Option(
        metavar="PIXELS",
        help="Approximate width of the network's input, in steps of 32; 256,448: maps averaged.",
    ),
]
MaxPixels = Annotated[
    int | None,
    Option(metavar="N", min=1, help=f"Skip images of more pixels; default: {MAX_PIXELS}."),
]
Window = Annotated[
    str | None,
    Option(
        metavar="LOW,HIGH",
        help="Values that become black and white in images of more than 8 bits; default: by the "
        "set's own values.",
    ),
]
Tile = Annotated[
    bool, Option("--tile", help="Score images larger than the size at full resolution.")
]
Roi = Annotated[
    str | None,
    Option(
        metavar="MASK",
        help="Score only inside a mask, or a folder of masks (not padim, reverse-distillation, "
        "musc).",
    ),
]
K = Annotated[
    int | None,
    Option(
        "--k",
        help="Number of nearest neighbours: images (patchcluster-plus) or patches (patchcluster, "
        "patchcore-lof, spade-cluster).",
    ),
]
Ratio = Annotated[
    float | None, Option(help="Share of the patches in the bank, 0 to 1 (patchcluster, patchcore).")
]
BankImages = Annotated[
    int | None,
    Option(
        metavar="N", help="Images in the bank at most, chosen to cover the set (patchcluster-plus)."
    ),
]
LocalWeight = Annotated[
    float | None, Option(help="How much rare but ordinary places are lowered (patchcluster-plus).")
]
ImageScoreName = Annotated[
    str | None,
    Option(
        metavar="RULE",
        help="baseline-corrected, top1%, max; reweighted (patchcluster, patchcore), global (spade, "
        "spade-cluster), rescored (musc).",
    ),
]
Labels = Annotated[
    Path | None,
    Option(
        metavar="FILE", help="CSV of path,label: normal, anomalous or unsure (patchcluster-plus)."
    ),
]
Seed = Annotated[int | None, Option(help="Random seed (padim, reverse-distillation).")]
DrawingSeed = Annotated[int, Option(help="Seed of the drawing.")]
Expect = Annotated[
    float | None,
    Option(
        metavar="SHARE",
        parser=parse_share,
        help="Flag the share you expect to be anomalous: 5% or 0.05.",
    ),
]
FlagTop = Annotated[
    int | None, Option(metavar="N", parser=_parse_count, help="Flag the N most anomalous images.")
]

# --- What does the work, and what is printed ------------------------------------------------------

Device = Annotated[
    str | None, Option(help="auto, cpu, cuda or mps; for scans also several: cuda:0,cuda:1.")
]
Ray = Annotated[
    str | None, Option(metavar="ADDRESS", help="Work on a Ray cluster: HOST:PORT, auto, or local.")
]
MaxMemory = Annotated[
    str | None, Option(metavar="SIZE", help="Refuse to start if more is needed: 8GB.")
]
NoCache = Annotated[
    bool,
    Option("--no-cache", help="Do not keep patches outside the bank: less disk, but no updates."),
]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Show no progress.")]
Debug = Annotated[bool, Option("--debug", help="Show the traceback of an error.")]

# --- export ---------------------------------------------------------------------------------------

Format = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="csv, json, parquet, masks, heatmaps, coco, cvat, labelstudio, yolo, fiftyone, onnx.",
    ),
]
ExportOutput = Annotated[str | None, _output("PATH", "File or folder; default: next to RUN.")]
FlaggedOnly = Annotated[bool, Option("--flagged-only", help="Export only the flagged images.")]
Segmentation = Annotated[
    str | None, Option(metavar="KIND", help="polygon, rle or box (coco, cvat, labelstudio, yolo).")
]
ExportImages = Annotated[
    str | None, Option(metavar="HOW", help="link or copy the images (yolo, fiftyone).")
]
ImagePrefix = Annotated[
    str | None, Option(metavar="TEXT", help="Address of the images' folder (labelstudio).")
]
OverwriteExport = Annotated[bool, Option(help="Replace an earlier export.")]
FlaggedTo = Annotated[str | None, Option(metavar="DIR", help="Copy or link flagged files there.")]
By = Annotated[str | None, Option(metavar="HOW", help="copy (the default), hardlink or symlink.")]

# --- evaluate and benchmark -----------------------------------------------------------------------

Truth = Annotated[
    Path,
    Option(
        metavar="DIR",
        help="Data set (docs/datasets.md has the layouts), its ground_truth, or a COCO file.",
    ),
]
DataSet = Annotated[
    Path, Argument(metavar="ROOT", help="Data set, in a layout of docs/datasets.md.")
]
TablesOutput = Annotated[str, _output("OUT", "Folder for the tables.")]
PaperSettings = Annotated[
    str | None, Option(metavar="NAMES", help="Of mix,test,ano,one-class; default: all.")
]
MethodNames = Annotated[
    str | None,
    Option(metavar="NAMES", help="Of those that `methods` lists; default: all but musc."),
]
Tables = Annotated[
    str | None, Option(metavar="NUMBERS", help="Of the paper's tables 1 to 7: 2,5,7; default: all.")
]
Categories = Annotated[
    str | None, Option(metavar="NAMES", help="Of the data set's categories; default: all.")
]
Figures = Annotated[
    bool, Option("--figures", help="Draw what the paper's figures 1, 3, 4, 5 show.")
]
PaperSize = Annotated[
    int | None, Option(metavar="PIXELS", help="Side of the network's input, a multiple of 32.")
]
Crop = Annotated[
    bool, Option(help="Resize to 8/7 of the input and cut out the centre, as the paper.")
]

# --- serve, watch and review ----------------------------------------------------------------------

Port = Annotated[
    int, Option(metavar="N", min=0, max=65535, help="Port to listen on; 0: a free one.")
]
Browser = Annotated[bool, Option(help="Open the page in the browser.")]
Token = Annotated[
    str | None, Option(envvar="PATCHCLUSTER_TOKEN", help="Bearer token that requests must carry.")
]
Parallel = Annotated[
    int | None, Option(metavar="N", min=1, help="Images scored in parallel; default: one a core.")
]
Queue = Annotated[int, Option(metavar="N", min=0, help="Images that may wait; others get a 503.")]
MaxUpload = Annotated[str, Option(metavar="SIZE", help="Largest file that is accepted.")]
RequestPixels = Annotated[
    int, Option(metavar="N", min=1, help="Refuse images of more pixels, whatever the scan read.")
]
Timeout = Annotated[float, Option(metavar="SECONDS", min=0.1, help="Then a request gets a 504.")]
Arrivals = Annotated[str, Argument(metavar="FOLDER", help="Where images arrive.")]
ScoresOutput = Annotated[str | None, _output("CSV", "Also write the table of scores.")]
WatchOutput = Annotated[str | None, _output("CSV", "Table; default: RUN-watch.csv.")]
Settle = Annotated[
    float, Option(metavar="SECONDS", min=0, help="How long a file must not have changed.")
]
Interval = Annotated[
    float, Option(metavar="SECONDS", min=0.01, help="Between two looks at the folder.")
]
Existing = Annotated[bool, Option(help="Score files that are there at the start.")]
Once = Annotated[bool, Option("--once", help="Score what is there and has settled, and end.")]
