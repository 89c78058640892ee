"""Facts about PyTorch here that belong to the provenance of a run, of every engine."""


def of_torch() -> dict[str, str]:
    """Version, what the CPU can do, and whether MKL multiplies. Imports torch."""
    import torch  # noqa: PLC0415

    return {
        "torch": torch.__version__,
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": "yes" if torch.backends.mkl.is_available() else "no",
    }
