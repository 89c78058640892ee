"""Sphinx configuration."""

project = "Assay"
copyright = "The Assay authors"
extensions = ["myst_parser"]
html_theme = "furo"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
# "evidence" and "verdicts" are blocks that a test reads, not languages.
suppress_warnings = ["misc.highlighting_failure"]
