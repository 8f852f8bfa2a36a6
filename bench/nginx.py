"""nginx as a pass-through: one worker, keep-alive connections to the provider, nothing logged."""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

USUAL_PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])

CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    upstream provider {{ server {provider}; keepalive 256; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://provider{path};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


def find() -> str | None:
    """The program, None where it isn't installed; Debian keeps it where a user's PATH doesn't look."""
    return shutil.which("nginx", path=USUAL_PLACES)


def command(program: str, data: Path, port: int, upstream: str) -> list[str]:
    """Write the configuration into the data folder; returns the command that serves on `port` with it."""
    folder = data / "nginx"
    folder.mkdir(mode=0o755)
    parts = urlsplit(upstream)
    text = CONFIGURATION.format(folder=folder, provider=parts.netloc, path=parts.path, port=port)
    if os.geteuid() == 0:
        text = f"user root;\n{text}"  # its own account couldn't enter the data folder
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    return [program, "-e", "stderr", "-c", str(folder / "nginx.conf")]
