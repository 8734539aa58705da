"""Templates of HTML, and the text that goes into them."""

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def load_template(name: str) -> Template:
    """Load a template of the package, `ROOM/FILE`; it escapes all that it inserts."""
    environment = Environment(
        loader=PackageLoader("patchcluster", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template(name)


def clean(path: str) -> str:
    """Return a path as valid UTF-8, with question marks for bytes that are not."""
    return path.encode("utf-8", "replace").decode()
