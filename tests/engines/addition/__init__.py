"""Laws of the addition engine. A package, so that its file names may repeat those of others."""
