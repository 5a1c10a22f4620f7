"""What the tests against a vCenter share: one program, built once, and folders for its estates."""

from __future__ import annotations

import pytest
import virtual_estates


@pytest.fixture(scope="session", autouse=True)
def built_lab() -> None:
    """The peer's program; the first test that needs it does not pay for it."""
    lacking = virtual_estates.vsphere_labs.available()
    if lacking:
        pytest.skip(lacking)
    virtual_estates.vsphere_labs.build()
