"""Verbs that list what can be chosen."""

import json
from typing import Any

from .options import AsJson
from .root import app


@app.command(epilog="Example: patchcluster methods")
def methods(as_json: AsJson = False) -> None:
    """List the methods, what each does, and its parameters."""
    import inspect

    from ..methods import METHODS

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "does": inspect.cleandoc(method.__doc__ or "").splitlines()[0],
            "parameters": {
                parameter.name: parameter.default
                for parameter in inspect.signature(method).parameters.values()
                if parameter.name not in ("stages", "strides")  # come from the backbone
            },
        }
        for name, method in METHODS.items()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        values = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
        print(f"{row['name']}\n    {row['does']}\n    {values}")


@app.command(epilog="Example: patchcluster backbones")
def backbones(as_json: AsJson = False) -> None:
    """List the backbones that are tested: what each costs, its licence, where its weights are.

    Any other timm network can be named too.
    """
    from ..methods import PatchClusterPlus
    from ..network.backbone_table import COST_SIZE, ROWS
    from ..network.backbones import describe
    from ..network.weights import find_weights

    rows: list[dict[str, Any]] = []
    for row in ROWS:
        outline = describe(row.name, PatchClusterPlus.strides)
        path, whence = find_weights(row.name)
        rows.append(
            {
                "name": row.name,
                "does": row.does,
                "channels": outline.channels,
                "strides": outline.strides,
                "parameters": outline.parameters,
                "gmacs": row.gmacs,
                "licence": row.licence,
                "terms": row.terms,
                "weights": whence,
                "file": path and str(path),
            }
        )
        if as_json:
            continue
        channels, strides = (
            ", ".join(map(str, values)) for values in (outline.channels, outline.strides)
        )
        print(
            f"{row.name}\n    {row.does}\n    weights: {whence}\n"
            f"    licence: {row.licence}; {row.terms}\n"
            f"    channels {channels} at strides {strides}; {outline.parameters / 1e6:.1f} million "
            f"parameters;\n    {row.gmacs} GMAC an image of {COST_SIZE} x {COST_SIZE} pixels, "
            f"{row.gmacs / ROWS[0].gmacs:.2g} x the default's",
            flush=True,
        )
    if as_json:
        print(json.dumps(rows))
