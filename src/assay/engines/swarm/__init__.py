"""One nested model, trained by clients of different sizes over compressed updates."""
