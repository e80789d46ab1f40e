"""Sphinx configuration; everything is built from what is installed, without the network."""

from importlib.metadata import version as installed_version

project = "tnmpo"
author = "the tnmpo authors"
release = version = installed_version("tnmpo")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Types are written in the docstrings, where they carry shapes too.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # torch's own text on ``forward`` says nothing about these layers

napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_param = False  # a type such as "(n,) array" is words, not a name to look up
napoleon_use_rtype = False

myst_heading_anchors = 3

html_theme = "furo"
html_title = f"tnmpo {release}"
html_theme_options = {"navigation_with_keys": True}
