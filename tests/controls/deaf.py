"""The gateway with telemetry that the store never takes."""

from config.asgi import application
from gateway.telemetry import Telemetry
from tokens.admission.connection import StoreUnavailable

__all__ = ["application"]


async def run(self, *arguments):
    raise StoreUnavailable("the admission store didn't answer in time", sent=True)


Telemetry._run = run
