"""What `make run` starts: embedded PostgreSQL and Valkey, the sandbox provider, the worker and the web server.

Nothing here needs Django: the test suite starts the same two servers through `postgres` and `valkey`.
"""
