"""Sphinx builds these pages: `make docs`, then open docs/_build/html/index.html."""

import re

import espnet_kd

project = "espnet_kd"
version = release = espnet_kd.__version__
copyright = "the authors of espnet_kd, Apache License 2.0"
html_title = f"{project} {version}"
html_theme = "furo"
html_copy_source = False
exclude_patterns = ["_build"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",  # the reader's browser loads it, the build needs no network
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # `x` in a docstring is code, as in Markdown
autodoc_typehints = "none"  # types and shapes stand in the docstrings
napoleon_use_ivar = True
toc_object_entries = False
# A fence without a language is a figure or an output.
highlight_language = "none"


def files_are_downloads(app, page: str, source: list[str]) -> None:
    """A link out of docs/ is a download: there is no page for it."""
    outside = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")
    source[0] = outside.sub(
        lambda link: "{download}`%s <%s>`" % (link[1].replace("`", ""), link[2]),
        source[0],
    )


def formulas_are_literal(app, what, name, obj, options, lines: list[str]) -> None:
    """An indented paragraph of a docstring is a formula, and a bar is a bar."""
    text = re.sub(r"(?<!::)\n\n(?=    \S)", "\n\n::\n\n", "\n".join(lines))
    lines[:] = [
        line if line.startswith(" ") else line.replace("|", r"\|")
        for line in text.split("\n")
    ]


def setup(app) -> None:
    app.connect("source-read", files_are_downloads)
    app.connect("autodoc-process-docstring", formulas_are_literal)
