"""`python -m sandbox --host 127.0.0.1 --port 9000`, or `--uds PATH`: serve until SIGTERM or Ctrl-C."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from sandbox.images import Provider
from sandbox.server import Server
from sandbox.settings import Settings, SettingsError

_BACKLOG = 512


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description="A provider that runs on this machine.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=9000, help="port to listen on, 0 for any (default %(default)s)")
    parser.add_argument("--uds", type=Path, help="listen on this Unix socket instead")
    return parser.parse_args()


def _listen(arguments: argparse.Namespace) -> tuple[socket.socket, str | None]:
    """The listening socket, and the URL that leads to it (None for a Unix socket). Raises OSError."""
    if arguments.uds is None:
        listener = socket.create_server((arguments.host, arguments.port), backlog=_BACKLOG)
        return listener, f"http://{arguments.host}:{listener.getsockname()[1]}"
    if arguments.uds.is_socket():
        arguments.uds.unlink()  # left behind by a process that was killed
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(arguments.uds))
    listener.listen(_BACKLOG)
    return listener, None


async def _serve(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for name in signal.SIGTERM, signal.SIGINT:
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    listener, url = _listen(arguments)
    provider = Provider(Settings.from_environment(url))
    server = Server(provider)
    start = asyncio.start_server if url else asyncio.start_unix_server
    listening = await start(server.serve, sock=listener, backlog=_BACKLOG)
    sys.stdout.write(f"sandbox ready on {url or arguments.uds}\n")
    sys.stdout.flush()
    await stop.wait()
    listening.close()
    await server.stop()
    provider.close()
    if arguments.uds is not None:
        arguments.uds.unlink(missing_ok=True)


def main() -> None:
    """Run the sandbox; leaves with 0 after a signal, with 1 and a sentence when it cannot start."""
    os.umask(0o077)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        asyncio.run(_serve(_arguments()))
    except (SettingsError, OSError) as exc:
        sys.exit(f"sandbox: {exc}")


if __name__ == "__main__":
    main()
