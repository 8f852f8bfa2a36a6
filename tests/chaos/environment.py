"""PostgreSQL and Valkey of a run's own, started when this is imported: before Django reads its settings.

Both write to disk before they answer, as in production. All is in one folder of the run, which goes with the process
unless `KEEP` is set.
"""

import atexit
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from config.supervisor.postgres import EmbeddedPostgres
from config.supervisor.valkey import EmbeddedValkey

FOLDER = Path(tempfile.mkdtemp(prefix="gateway-chaos-"))
FOLDER.chmod(0o755)  # PostgreSQL's account must be able to enter
KEEP: list[str] = []  # reasons to keep the folder
SANDBOX_KEY = "sandbox-key-of-the-chaos-run"

DEADLINE, MARGIN = 3, 1  # seconds: a lease is over soon
SHORT = {
    "UPSTREAM_DEADLINE": str(DEADLINE),
    "LEASE_MARGIN": str(MARGIN),
    "UPSTREAM_CONNECT_TIMEOUT": "1",
    "DISPATCH_WITHIN": "0.8",
    "SETTLE_RETRY_SECONDS": "0.6",
    "BODY_TIMEOUT": "2",
    "WORKER_STUCK_SECONDS": "3",  # a worker whose broker was killed may hang: its watchdog ends it after twice that
}

postgres, valkey = EmbeddedPostgres(FOLDER / "data"), EmbeddedValkey(FOLDER / "data")
(FOLDER / "data").mkdir()


@atexit.register
def _stop() -> None:
    valkey.stop(5)
    postgres.stop(10)
    real = postgres.folder.resolve()
    if not KEEP:
        shutil.rmtree(FOLDER, ignore_errors=True)
        if real.parent != postgres.data.resolve():  # where PostgreSQL's account can enter
            shutil.rmtree(real.parent, ignore_errors=True)


postgres.start()
valkey.start()

for _name in [name for name in os.environ if name.endswith("_FILE")]:
    del os.environ[_name]
os.environ.update(
    SHORT,
    DATA=str(FOLDER / "data"),
    DATABASE_URL=postgres.url,
    REDIS_URL=valkey.url,
    SECRET_KEY=secrets.token_hex(32),
    TOKEN_PEPPERS=f"1:{secrets.token_hex(32)}",
    ENCRYPTION_KEYS="MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    PUBLIC_URL="http://127.0.0.1:8000",
    ALLOWED_HOSTS="127.0.0.1,localhost",
    CRASH_FOLDER=str(FOLDER),
    DJANGO_SETTINGS_MODULE="config.settings",
)
