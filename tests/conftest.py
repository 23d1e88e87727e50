"""What holds for every test."""

from __future__ import annotations

import os

# A test compiles what is in the tree. The compile cache is off, in the processes that tests start too; the tests of the
# cache itself turn it on, in folders of their own.
os.environ["DLC_CACHE_SIZE"] = "0"
