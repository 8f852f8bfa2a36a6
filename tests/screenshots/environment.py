"""A stack of its own, as `make run` starts it, from the moment when this is imported: before Django reads its settings.

It goes with the process, and its data with it.
"""

import atexit
import os
from contextlib import ExitStack

from tests.makerun import stack

_held = ExitStack()
STACK = _held.enter_context(stack())
atexit.register(_held.close)
STACK.start()

for _name in [name for name in os.environ if name.endswith("_FILE")]:
    del os.environ[_name]
os.environ.update(STACK.note.environment, DJANGO_SETTINGS_MODULE="config.settings", LOG_LEVEL="CRITICAL")
