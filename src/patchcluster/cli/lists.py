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
