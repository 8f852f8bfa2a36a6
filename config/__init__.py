"""The house's wiring: settings, URLs, ASGI entry, Celery, the stores' addresses, and the supervisor of `make run`."""
