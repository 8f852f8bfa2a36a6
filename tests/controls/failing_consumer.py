"""A worker whose transport fails as it can after an outage of the broker: with a task in hand, by an error of its own."""

import time

from celery.signals import celeryd_after_setup, worker_ready
from kombu.transport.redis import MultiChannelPoller

from config.celery import app

_on_readable = MultiChannelPoller.on_readable


@app.task(name="hang")
def hang():
    time.sleep(30)


@celeryd_after_setup.connect
def queue_one(**_details):
    hang.delay()


@worker_ready.connect
def fail(**_details):
    began = time.monotonic()

    def on_readable(self, fileno):
        if time.monotonic() > began + 1:
            raise AttributeError("'NoneType' object has no attribute 'hostname'")
        return _on_readable(self, fileno)

    MultiChannelPoller.on_readable = on_readable


__all__ = ["app"]
