"""Credit estimators, by name: see `make`."""
