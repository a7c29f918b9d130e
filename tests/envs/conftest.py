"""``sample_envs`` is importable by name, as a user's module on the path is."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
