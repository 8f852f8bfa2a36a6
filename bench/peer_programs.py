"""Other gateways: installed into a folder outside the repository, and the commands that serve with them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(os.environ.get("BENCH_PEERS") or Path.home() / ".cache" / "gem-heaven-bench")
LITELLM_PACKAGE, PORTKEY_PACKAGE = "litellm[proxy]", "@portkey-ai/gateway"
INSTALL_SECONDS = 600.0
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")

# `dall-e-2`: a name that LiteLLM takes for an image model without asking anybody.
CONFIGURATION = """\
model_list:
  - model_name: dall-e-2
    litellm_params: {{model: openai/dall-e-2, api_base: "{provider}", api_key: key-of-the-instant-provider}}
    model_info: {{mode: image_generation}}
general_settings: {{master_key: {key}}}
litellm_settings: {{telemetry: false, set_verbose: false}}
"""


class MissingPeer(Exception):
    """A peer that can't be installed here; the message says why."""


def litellm(data: Path, port: int, provider: str, key: str) -> tuple[list[str], dict[str, str]]:
    """The command and environment of LiteLLM's proxy, one worker, its configuration in `data`. Raises MissingPeer."""
    folder = FOLDER / "litellm"
    program = folder / "bin" / "litellm"
    if not program.exists():
        uv = [sys.executable, "-m", "uv"]
        _install("LiteLLM", [*uv, "venv", "--quiet", "--allow-existing", str(folder)])
        _install("LiteLLM", [*uv, "pip", "install", "--python", str(folder / "bin" / "python"), LITELLM_PACKAGE])
    configuration = data / "litellm.yaml"
    configuration.write_text(CONFIGURATION.format(provider=provider, key=key), encoding="utf-8")
    command = [str(program), "--config", str(configuration), "--host", "127.0.0.1", "--port", str(port)]
    # Its prices come with it: nothing is fetched.
    return [*command, "--num_workers", "1"], {**_environment(), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def portkey(port: int) -> tuple[list[str], dict[str, str]]:
    """The command and environment of Portkey's gateway on Node. Raises MissingPeer."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise MissingPeer("it needs Node and npm, which aren't installed.")
    folder = FOLDER / "portkey"
    program = folder / "node_modules" / PORTKEY_PACKAGE / "build" / "start-server.js"
    if not program.exists():
        _install("Portkey", ["npm", "install", "--prefix", str(folder), PORTKEY_PACKAGE])
    environment = {**_environment(), "NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}
    return [node, str(program), "--headless", f"--port={port}"], environment


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def _install(name: str, command: Sequence[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"Installing {name} into {FOLDER}.", flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise MissingPeer(f"the package registry was not reached ({type(exc).__name__}).") from exc
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise MissingPeer(f"the package registry didn't give it:\n{last}")
