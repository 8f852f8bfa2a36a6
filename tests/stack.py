"""The pytest plugin that gives the whole run one PostgreSQL and one Valkey, started before Django reads its settings.

Loaded by ``-p tests.stack``. One database is migrated once and never emptied: tests keep apart by making their own
tenants, as customers do.
"""

import atexit
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from tests.embedded import start_servers

FOLDER = Path(tempfile.mkdtemp(prefix="gateway-tests-"))
FOLDER.chmod(0o755)  # PostgreSQL's account must be able to enter
REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"
SERVERS = start_servers(FOLDER / "servers")


@atexit.register
def _stop() -> None:
    SERVERS.stop()
    shutil.rmtree(FOLDER, ignore_errors=True)


for name in [name for name in os.environ if name.endswith("_FILE")]:
    del os.environ[name]
os.environ.update(
    DATA=str(FOLDER / "data"),
    DATABASE_URL=SERVERS.database_url,
    REDIS_URL=SERVERS.redis_url,
    SECRET_KEY=secrets.token_hex(32),
    TOKEN_PEPPERS=f"1:{secrets.token_hex(32)}",
    ENCRYPTION_KEYS="MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    PUBLIC_URL="http://127.0.0.1:8000",
    ALLOWED_HOSTS="127.0.0.1,localhost,testserver",
    DJANGO_SETTINGS_MODULE="config.settings",
)
