"""The checks of a log's arithmetic, one kind of statement a module."""
