from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.tito import Tito, tito_of
from miles_lite.tito.verification_cases import ROLES


@pytest.fixture(scope="session")
def tito(tiny_model: Path) -> Tito:
    return tito_of(tiny_model, append_roles=ROLES)
