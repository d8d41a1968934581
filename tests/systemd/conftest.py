from __future__ import annotations

import pytest
from support.systemd_host import why_not


@pytest.fixture(scope="session")
def systemd():
    """Skips, with the reason, where no systemd can be booted."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
