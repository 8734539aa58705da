"""Write docs/cli.md, all verbs and options, from the command itself: what help says.

python docs/write_cli.py
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import typer

from patchcluster.cli import app

HEAD = """# The command line

What `patchcluster --help` and `patchcluster VERB --help` say, written by `docs/write_cli.py`. Results go to standard output, everything else to standard error. Exit code 0: done; 1: it could not do it, and one line says what, why and what to do next; 2: wrong usage; 130: interrupted.
"""  # noqa: E501 (a paragraph of Markdown)


def main() -> None:
    Path(__file__).with_name("cli.md").write_text(describe(typer.main.get_command(app)))


def describe(group: Any) -> str:
    """The page, for the command with all its verbs."""
    context = group.make_context("patchcluster", [], resilient_parsing=True)
    verbs = [(name, group.commands[name]) for name in group.list_commands(context)]
    lines = [HEAD, "| verb | does |", "| --- | --- |"]
    for name, verb in verbs:
        lines.append(f"| [`{name}`](#{name}) | {verb.help.splitlines()[0]} |")
    for name, verb in verbs:
        lines += ["", *_describe_verb(name, verb)]
    return "\n".join(lines) + "\n"


def _describe_verb(name: str, verb: Any) -> Iterator[str]:
    arguments = [p for p in verb.params if p.param_type_name == "argument"]
    usage = " ".join([name, *map(_metavar, arguments), "[OPTIONS]"])
    yield f"## {name}"
    yield f"\n`patchcluster {usage}`\n"
    yield verb.help.strip()
    yield "\n```sh\n" + verb.epilog.removeprefix("Example: ") + "\n```\n"
    yield "| | | default | |"
    yield "| --- | --- | --- | --- |"
    types = get_type_hints(inspect.unwrap(verb.callback))
    for parameter in verb.params:
        value = _value(parameter, types[parameter.name])
        cells = (_name(parameter), value, _default(parameter), _help(parameter))
        yield f"| {' | '.join(cells)} |"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_metavar(parameter)}`"
    return ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))


def _metavar(argument: Any) -> str:
    return f"{argument.metavar}..." if argument.nargs == -1 else str(argument.metavar)


def _value(parameter: Any, kind: Any) -> str:
    if parameter.param_type_name == "argument" or parameter.is_flag:
        return ""
    kinds = {"int": "INTEGER", "float": "FLOAT"}
    named = getattr(kind, "__args__", (kind,))[0].__name__  # of `int | None` the first
    return f"`{parameter.metavar or kinds.get(named, 'TEXT')}`"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None or parameter.default is False:
        return ""
    if parameter.default is True:
        return f"`{parameter.opts[0]}`"
    return f"`{parameter.default}`"


def _help(parameter: Any) -> str:
    text = " ".join(parameter.help.split()).replace("|", "\\|")
    return f"{text} Or `{parameter.envvar}` in the environment." if parameter.envvar else text


if __name__ == "__main__":
    main()
