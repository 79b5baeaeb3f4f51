"""The store's tests lose no power: fsync is skipped here (a third of their time), not in children.

``test_durability.py`` looks at what is synced, and in which order.
"""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_fsync():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
