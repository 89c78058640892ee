"""The four engines. Each knows only core.engine, core.config and core.errors."""
