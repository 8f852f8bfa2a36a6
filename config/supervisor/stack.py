"""The stack of `make run`: what starts, in which order, and how it stops."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Set
from pathlib import Path

from config.supervisor import orphans, processes, programs, report, runfile, secretfiles, variables
from config.supervisor.errors import StartError
from config.supervisor.identity import of_child
from config.supervisor.postgres import EmbeddedPostgres
from config.supervisor.report import say
from config.supervisor.service import Plain, Runnable, Service, describe
from config.supervisor.valkey import EmbeddedValkey

SECRETS = ("secret_key", "token_peppers", "encryption_keys")
DEMO_SECRETS = ("sandbox_key", "admin_password")
READY_SECONDS = 60.0
WATCH_SECONDS = 0.2
LOG_BYTES = 10_000_000
STOP_SECONDS = {"worker": 15.0, "sandbox": 10.0, "valkey": 30.0, "postgres": 60.0}


class Stack:
    """Everything that runs on one data folder, which this process has claimed.

    Args:
        data: the data folder, absolute.
        port: the web server's port on 127.0.0.1.
        demo: whether there is a demo tenant, and the sandbox provider that draws for it.
        web_seconds: how long a stop waits for calls in flight.
    """

    def __init__(self, data: Path, port: int, *, demo: bool, web_seconds: float) -> None:
        self.data = data
        self.port = port
        self.demo = demo
        self.services: list[Service] = []
        self._run_file = runfile.new(data, os.getpid())
        self._began = False
        self._web_seconds = web_seconds

    def start(self) -> None:
        """Start everything and return when the gateway admits requests.

        Raises:
            StartError: with the sentence for the person; what was started still runs, so call `stop`.
        """
        left = runfile.read(self.data)
        if left is not None:
            orphans.stop_all(left, self._web_seconds, say)
            left.remove()
        refuse_taken_port(self.port)
        self._prepare_folders()
        servers = self._start_servers()
        self._run_file.environment = variables.for_run_file(self.data, self.port, servers)
        self._run_file.write()
        environment = variables.for_children(self._run_file.environment)
        demo = self._prepare_with_demo(environment) if self.demo else None
        if demo is None:
            say("Preparing the database.")
            self._prepare_database(environment, sandbox_url="")
        say("Starting the worker and the web server.")
        self._run(Plain(programs.worker(self.data, environment, free_port()), self._run_file.record))
        refuse_taken_port(self.port)
        web = self._run(Plain(programs.web(self.data, environment, self.port), self._run_file.record))
        self._wait_for(web, lambda: why_not_ready(self.port, expected=frozenset() if demo else {"catalog"}))
        url = variables.public_url(self.port)
        report.write(self.data, demo or report.without_demo(url))
        say(report.text(self.data, demo) if demo else report.text_without_demo(self.data, url))

    def watch(self, parent_gone: Callable[[], bool]) -> None:
        """Keep every service running; return when `parent_gone` says that nobody is left to serve."""
        while not parent_gone():
            for service in self.services:
                service.keep_running()
            time.sleep(WATCH_SECONDS)

    def stop(self, hurried: Callable[[], bool]) -> None:
        """Stop everything in order: calls in flight first, their stores last.

        Args:
            hurried: whether the person has lost patience; then nothing waits for calls in flight.
        """
        if not self._began:
            return  # nothing of ours runs, and run.json may still name what an earlier start left
        say("Stopping.")
        self._run_file.stopping = True
        try:
            self._run_file.write()
        except StartError as exc:
            say(str(exc))  # the folder is gone, perhaps; all the more must nothing go on running
        by_name = {service.runnable.name: service for service in self.services}
        for name in orphans.STOP_ORDER:
            if name in by_name:
                self._stop(by_name[name], hurried)
        # A child whose start was interrupted is recorded, yet not among the services.
        orphans.stop_all(self._run_file, 0, say)
        self._run_file.remove()

    def _stop(self, service: Service, hurried: Callable[[], bool]) -> None:
        runnable = service.runnable
        if runnable.name == "web" and runnable.child is not None:
            runnable.child.interrupt()
            began, repeated = time.monotonic(), False
            while service.exit_status is None and not hurried() and time.monotonic() < began + self._web_seconds:
                if not repeated and time.monotonic() > began + processes.INTERRUPT_AGAIN_SECONDS:
                    say("Finishing the calls in flight; Ctrl-C again doesn't wait for them.")
                    processes.interrupt_session(runnable.child.identity, signal.SIGTERM)
                    repeated = True
                time.sleep(0.05)
        runnable.stop(STOP_SECONDS.get(runnable.name, 0.0))

    def _prepare_folders(self) -> None:
        database_exists = (self.data / "postgres").exists() and not variables.is_external("DATABASE_URL")
        names = (*SECRETS, *DEMO_SECRETS) if self.demo else SECRETS
        secretfiles.ensure(self.data, *names, database_exists=database_exists)
        (self.data / "demo.json").unlink(missing_ok=True)  # its appearance means: ready
        shutil.rmtree(self.data / "metrics", ignore_errors=True)  # figures of processes that are gone
        for name in ("logs", "metrics", "sandbox"):
            (self.data / name).mkdir(mode=0o700, exist_ok=True)
        for log in (self.data / "logs").glob("*.log"):
            if log.stat().st_size > LOG_BYTES:
                log.replace(log.with_name(f"{log.name}.1"))
        self._began = True
        self._run_file.write()

    def _start_servers(self) -> dict[str, str]:
        """Start the servers that the person doesn't bring; their URLs by setting."""
        record = self._run_file.record
        embedded: dict[str, EmbeddedPostgres | EmbeddedValkey] = {
            "DATABASE_URL": EmbeddedPostgres(self.data, record=record),
            "REDIS_URL": EmbeddedValkey(self.data, record=record),
        }
        urls = {}
        for setting, server in embedded.items():
            if variables.is_external(setting):
                say(f"Using the server of {setting}.")
                continue
            say(f"Starting {server.name}.")
            self._run(server)
            self._run_file.folders.append(str(server.socket_folder))
            urls[setting] = server.url
        if "DATABASE_URL" in urls:
            self._run_file.postgres_data = str((self.data / "postgres").resolve())
        return urls

    def _prepare_with_demo(self, environment: dict[str, str]) -> report.Demo:
        port = free_port()
        sandbox = self._run(Plain(programs.sandbox(self.data, environment, port), self._run_file.record))
        say("Preparing the database and the demo tenant.")
        output = self._prepare_database(environment, f"http://127.0.0.1:{port}")
        password = secretfiles.read(self.data, "admin_password")
        demo = report.parse(output, variables.public_url(self.port), password)
        secretfiles.write_private(secretfiles.path(self.data, "demo_token"), demo["token"] + "\n")
        self._wait_for(sandbox, lambda: why_not_listening(port))
        return demo

    def _prepare_database(self, environment: dict[str, str], sandbox_url: str) -> str:
        """Run the preparation; returns what it printed."""
        log = self.data / "logs" / "prepare.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                programs.preparation(self.data, sandbox_url),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=programs.ROOT,
                env=environment,
                start_new_session=True,
            )
        with process:
            try:
                # Otherwise the start after a kill -9 would migrate beside it.
                self._run_file.record("preparation", of_child(process.pid))
                output, _ = process.communicate()
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise StartError(f"The database could not be prepared:\n{processes.last_lines(log)}")
        return output.decode()

    def _run(self, runnable: Runnable) -> Service:
        service = Service(runnable)
        self.services.append(service)
        service.start()
        return service

    def _wait_for(self, service: Service, why_not: Callable[[], str]) -> None:
        name = service.runnable.name
        log = self.data / "logs" / f"{name}.log"
        end = time.monotonic() + READY_SECONDS
        while reason := why_not():
            if service.exit_status is not None:
                how = describe(service.exit_status)
                raise StartError(f"{name} did not start ({how}); its log ends:\n{processes.last_lines(log)}")
            if time.monotonic() > end:
                raise StartError(f"{name} was not ready after {READY_SECONDS:.0f} s ({reason}); see {log}.")
            time.sleep(0.05)


def refuse_taken_port(port: int) -> None:
    """Raise StartError if anything listens on the port.

    Granian itself would share the port of another granian (SO_REUSEPORT) and take half of its requests.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise StartError(
                f"Port {port} can't be used ({exc.strerror}): choose another, as in `make run PORT={port + 1}`."
            ) from exc


def free_port() -> int:
    """A port of 127.0.0.1 that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def why_not_listening(port: int) -> str:
    """Empty once something accepts connections on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


def why_not_ready(port: int, expected: Set[str] = frozenset()) -> str:
    """Empty once `GET /readyz` answers 200; else what it answered, which names the part that isn't ready.

    Args:
        port: the web server's.
        expected: problems that only a person can end; without a provider there is no catalog.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read(500).decode(errors="replace")
        if answer.status == 200 or (expected and json.loads(text)["problems"].keys() <= expected):
            return ""
        return f"readyz answers {answer.status} {text}".strip()
    except (OSError, http.client.HTTPException, ValueError, KeyError) as exc:
        return str(exc)
    finally:
        connection.close()
