"""The site: `make site` builds it with Sphinx, without the network. What is particular to it is in docs/site."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "site"))

import kullback  # noqa: E402

project = "kullback"
author = "The kullback developers"
copyright = "The kullback developers, Apache-2.0"
version = release = kullback.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "docstrings",  # docs/site: the house style of docstrings as reStructuredText
    "pages",  # docs/site: links that also work on GitHub; files of the project's root; a folder's list of pages
    "mathml",  # docs/site: formulas without a script
    "commands",  # docs/site: what the command says of itself
]
exclude_patterns = ["site"]
nitpicky = True
smartquotes = False  # (...) and "text" are code more often than not
suppress_warnings = ["toc.empty_glob", "myst.header", "myst-nb.lexer"]  # the last: of notebooks that are not run

myst_enable_extensions = ["dollarmath", "attrs_block", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "kullback"
html_favicon = "site/static/favicon.svg"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b63a5", "color-brand-content": "#0b63a5"},
    "dark_css_variables": {"color-brand-primary": "#6db5ec", "color-brand-content": "#6db5ec"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
