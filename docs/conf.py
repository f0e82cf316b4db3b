"""Sphinx's settings for the site that `make docs` builds into out/docs (decision 0064)."""

from __future__ import annotations

import sys
from pathlib import Path

import seedmask

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Seedmask"
author = "The Seedmask authors"
copyright = author
version = release = seedmask.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "seedmask_pages"]
exclude_patterns = ["_ext", "_static"]

# Markdown, with definition lists for options and anchors down to third-level headings.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
smartquotes = False  # or `--option` in running text would get a dash

# Docstrings name code in single backticks. Nothing heavy is installed where the site is built.
default_role = "code"
autodoc_mock_imports = [
    "executorch",
    "iotcore",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "pooch",
    "rich",
    "sklearn",
    "torch",
    "torchao",
]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
# Shown by the names that the code has for them, one parameter on a line where a signature is long.
autodoc_type_aliases = {
    name: name.rpartition(".")[2] for name in ("Arrays", "F32", "I32", "I64", "Mask", "Targets", "npt.ArrayLike")
}
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

_COLOURED = ("color-brand-primary", "color-brand-content", "color-api-name", "color-api-pre-name")
html_theme = "furo"
html_title = "Seedmask"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": dict.fromkeys(_COLOURED, "#17624f"),
    "dark_css_variables": dict.fromkeys(_COLOURED, "#6fd3b5"),
}

# A copied console block is what you type: without prompts and without output.
copybutton_prompt_text = "$ "
