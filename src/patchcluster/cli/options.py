"""Options that commands share: one name and one meaning everywhere."""

from typing import Annotated

import typer

from .parsing import parse_count

RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="The folder that a scan wrote.")]
Preset = Annotated[
    str | None,
    typer.Option(help="default, fast, best, or paper (WideResNet50, brings no weights)."),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        help="patchcluster-plus, patchcluster, patchcore, patchcore-lof, spade, spade-cluster, "
        "padim, reverse-distillation, or musc."
    ),
]
Backbone = Annotated[str | None, typer.Option(help="Any timm network, by its name.")]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE", help="The backbone's weights, .safetensors or .pth.")
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="About how wide the network sees an image, in steps of 32; 256,448: both, fused.",
    ),
]
Tile = Annotated[
    bool, typer.Option("--tile", help="Score images over the network's size at their own.")
]
Roi = Annotated[
    str | None,
    typer.Option("--roi", metavar="MASK", help="Score only inside: a mask, or a folder of masks."),
]
K = Annotated[
    int | None,
    typer.Option(
        "--k", help="Nearest neighbours of a patch that count: images by the default, else patches."
    ),
]
Ratio = Annotated[
    float | None,
    typer.Option(help="Share of the patches in the bank, 0 to 1 (patchcluster, patchcore)."),
]
BankImages = Annotated[
    int | None,
    typer.Option(metavar="N", help="Compare with so many images only, chosen to cover the set."),
]
LocalWeight = Annotated[
    float | None, typer.Option(help="How much rare but ordinary places are lowered.")
]
ImageScoreName = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="contrast, top1%, max; of a method's own: reweighted (equation 3), global, rescored.",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda, mps; a scan shares several: cuda:0,cuda:1.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS", help="Work on a Ray cluster: HOST:PORT, auto, or local."
    ),
]
MaxMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Refuse to start if more is needed: 8GB.")
]
Expect = Annotated[
    str | None,
    typer.Option(metavar="SHARE", help="Flag the share you expect to be anomalous: 5% or 0.05."),
]
FlagTop = Annotated[
    int | None,
    typer.Option(
        metavar="N", parser=parse_count, help="Flag so many images, most anomalous first."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of padim and reverse-distillation.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
