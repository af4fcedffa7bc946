"""What all benches share. Importing it puts tests/support on the path, where the random checkpoint and servers are."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "support"))
