"""The lab: studies, runs, evidence, verdicts and the log. Never imports torch or an engine."""
