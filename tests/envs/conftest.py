"""Games of engines that cannot be had from an index are played by stand-ins: here, and in workers, which take over the path."""

import sys
from pathlib import Path

import pytest

STAND_INS = str(Path(__file__).parent / "stand_ins")
sys.path.insert(0, STAND_INS)


@pytest.fixture(autouse=True, scope="session")
def caches_of_their_own(tmp_path_factory):
    """Tests neither use nor fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAYFIELD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
