"""Sphinx configuration."""

project = "Assay"
copyright = "The Assay authors"
extensions = ["myst_parser"]
html_theme = "furo"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
