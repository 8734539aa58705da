"""Verbs on what can be chosen: methods and backbones, and how well the methods do."""

import ast
import dataclasses
import inspect
import json
from importlib import resources
from typing import Any

from .. import methods as methods_package
from ..methods import CLASSES, METHODS
from . import options
from .terminal import shown_errors, shown_progress, teller


def methods(as_json: options.AsJson = False) -> None:
    """List the methods, what each does, and its parameters."""
    rows = [_describe_method(name) for name in CLASSES]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        values = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
        print(f"{row['name']}\n    {row['does']}\n    {values}")


def _describe_method(name: str) -> dict[str, Any]:
    """Read from the source of a method what it does and its parameters: that needs no torch."""
    file, class_name, _ = CLASSES[name]
    source = resources.files(methods_package).joinpath(f"{file}.py").read_text("utf-8")
    kind = _find(ast.parse(source), class_name)
    start = _find(kind, "__init__")
    if start is None:  # inherited, perhaps
        taken = inspect.signature(METHODS[name]).parameters
        parameters = {one.name: one.default for one in taken.values()}
    else:
        names = [argument.arg for argument in start.args.args[1:]]  # but self
        defaults = map(ast.literal_eval, start.args.defaults)
        parameters = dict(zip(names, defaults, strict=True))
    for of_backbone in ("stages", "strides"):
        parameters.pop(of_backbone, None)
    does = (ast.get_docstring(kind) or "").partition("\n")[0]
    return {"name": name, "does": does, "parameters": parameters}


def _find(tree: Any, name: str) -> Any:
    """Find a class or function by its name in the body of a module or class; None: not there."""
    return next((node for node in tree.body if getattr(node, "name", "") == name), None)


def backbones(as_json: options.AsJson = False) -> None:
    """List the backbones that are tested: what each costs, its licence, where its weights are.

    Any other timm network can be named too.
    """
    from ..network.backbone_table import COST_SIZE, ROWS
    from ..network.weights import find_weights

    rows: list[dict[str, Any]] = []
    for row in ROWS:
        path, whence = find_weights(row.name)
        known = dataclasses.asdict(row) | {"weights": whence, "file": path and str(path)}
        rows.append({name: value for name, value in known.items() if name != "hub"})
        if not as_json:
            channels = ", ".join(map(str, row.channels))
            strides = ", ".join(map(str, row.strides))
            print(
                f"{row.name}\n    {row.does}\n    weights: {whence}\n"
                f"    licence: {row.licence}; {row.terms}\n"
                f"    channels {channels} at strides {strides}; "
                f"{row.parameters / 1e6:.1f} million parameters;\n"
                f"    {row.gmacs} GMAC an image of {COST_SIZE} x {COST_SIZE} pixels, "
                f"{row.gmacs / ROWS[0].gmacs:.2g} x the default's",
                flush=True,
            )
    if as_json:
        print(json.dumps(rows))


def benchmark(
    root: options.DataSet,
    output: options.TablesOutput = "benchmark",
    setting: options.PaperSettings = None,
    methods: options.MethodNames = None,
    tables: options.Tables = None,
    categories: options.Categories = None,
    figures: options.Figures = False,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    size: options.PaperSize = None,
    crop: options.Crop = True,
    device: options.Device = None,
    max_memory: options.MaxMemory = None,
    seed: options.Seed = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run the paper's methods in its settings and write its tables, measured and published.

    After a kill the same command resumes; with more names it adds to OUT.
    """
    asked: dict[str, Any] = {
        "settings": options.parse_names(setting),
        "methods": options.parse_names(methods),
        "tables": options.parse_tables(tables),
        "categories": options.parse_names(categories),
        "backbone": backbone,
        "weights": weights,
        "size": size,
        "device": device,
        "seed": seed,
        "max_memory": max_memory,
    }
    with shown_errors(debug, resumes=True), shown_progress(quiet) as progress:
        from ..benchmark import benchmark as run_benchmark

        result = run_benchmark(
            root,
            output,
            figures=figures,
            crop=crop,
            progress=progress,
            tell=teller(quiet),
            **{name: value for name, value in asked.items() if value is not None},
        )
    if as_json:
        cells = [dataclasses.asdict(cell) for cell in result.cells]
        print(json.dumps({"report": str(result.report), "cells": cells}))
    else:
        print(result.report)
