"""What all tests need of the process that runs them."""

import signal


def pytest_configure() -> None:
    """Ctrl-C can be tested in the background too: there a shell has it ignored, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
