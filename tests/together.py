"""Which tests stay in one process when pytest-xdist deals them out to several."""

from __future__ import annotations

from pathlib import PurePath

from xdist.scheduler import LoadScopeScheduling


class Together(LoadScopeScheduling):
    """Those of a file, and of all files `*_e2e.py` of a folder, share what they start, and those of tests/tito what is
    found out of each template; in tests/e2e each test starts what it needs by itself."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(nodeid.partition("::")[0])
        if file.parent.name == "e2e":
            return nodeid
        return str(file.parent if file.name.endswith("_e2e.py") or file.parent.name == "tito" else file)
