"""Hand-kept logs: what they report, with file and line, and whether its arithmetic holds.

What stands here was typed by somebody. It is reported, never evidence, and no claim can rest on
it. Nothing in a log is run, opened or followed. Data flows one way: document (blocks) → entries
and audit (findings) → report.
"""
