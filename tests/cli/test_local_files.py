"""Folders of runs outside the lab."""

from assay.cli.local_files import Folder, interruptible
from assay.core.files import temporary_of


def test_what_a_kill_left_half_written_goes_with_the_next_start(tmp_path):
    """As in the lab; hidden files of the user's own stay."""
    half, mine = temporary_of(tmp_path / "state.bin"), tmp_path / ".mine.tmp"
    half.write_bytes(b"half")
    mine.write_bytes(b"whole")
    context = Folder(tmp_path, seeds={}, quiet=True)
    assert half.exists()
    with interruptible([context]):
        assert not half.exists()
        beside = temporary_of(tmp_path / "state.bin")
        beside.write_bytes(b"being written")
    assert beside.exists()
    assert mine.read_bytes() == b"whole"
