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
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Seedmask"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#17624f", "color-brand-content": "#17624f"},
    "dark_css_variables": {"color-brand-primary": "#6fd3b5", "color-brand-content": "#6fd3b5"},
}

# A copied console block is what you type: without prompts and without output.
copybutton_prompt_text = "$ "
