"""The pytest plugin that gives the whole run one PostgreSQL and one Valkey, started before Django reads its settings.

Loaded by ``-p tests.stack``. One database is migrated once and never emptied: tests keep apart by making their own
tenants, as customers do. Under ``-n`` (pytest-xdist) each of the processes that run tests has its own of everything.
"""

import atexit
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.embedded import start_servers

FOLDER = Path(tempfile.mkdtemp(prefix="gateway-tests-"))
FOLDER.chmod(0o755)  # PostgreSQL's account must be able to enter
REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"
# The process that only hands out the tests needs no servers, just settings that can be read.
RUNS_TESTS = "PYTEST_XDIST_WORKER" in os.environ or not any(argument.startswith("-n") for argument in sys.argv[1:])
if RUNS_TESTS:
    SERVERS = start_servers(FOLDER / "servers")


@atexit.register
def _stop() -> None:
    if RUNS_TESTS:
        SERVERS.stop()
    shutil.rmtree(FOLDER, ignore_errors=True)


for name in [name for name in os.environ if name.endswith("_FILE")]:
    del os.environ[name]
os.environ.update(
    DATA=str(FOLDER / "data"),
    DATABASE_URL=SERVERS.database_url if RUNS_TESTS else "postgresql://nobody@localhost/none",
    REDIS_URL=SERVERS.redis_url if RUNS_TESTS else "redis://localhost",
    SECRET_KEY=secrets.token_hex(32),
    TOKEN_PEPPERS=f"1:{secrets.token_hex(32)}",
    ENCRYPTION_KEYS="MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    PUBLIC_URL="http://127.0.0.1:8000",
    ALLOWED_HOSTS="127.0.0.1,localhost,testserver",
    DJANGO_SETTINGS_MODULE="config.settings",
)
