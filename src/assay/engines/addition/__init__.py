"""`addition`: tiny transformers that learn to add."""
