"""A page of ours: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lenext import runs
from lenext.evaluation.fonts import embedded_font, printable


def write_page(
    path: Path, package: str, template: str, content: dict[str, Any], filters: dict[str, Callable[..., Any]]
) -> Path:
    """Fill a template of a package, with the style and the letters that it needs, and write it; returns the path."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("lenext.evaluation")]),
        autoescape=True,  # class and file names are other people's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, **filters}
    page = environment.get_template(template)
    text = page.render(content, font=embedded_font([page.render(content, font=None)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    # File names may hold bytes that are no text, which UTF-8 cannot write.
    runs.write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path
