# The gateway's one image: web server, worker, scheduler and manage.py differ by their command only.
FROM python:3.13-slim AS packages
COPY requirements/base.txt /requirements.txt
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: -r /requirements.txt

FROM python:3.13-slim
# Folders for named volumes: a new volume takes over their owner.
RUN groupadd --gid 10001 gateway \
    && useradd --uid 10001 --gid gateway --no-create-home --home-dir /data --shell /usr/sbin/nologin gateway \
    && install -d -o gateway -g gateway -m 0700 /data
COPY --from=packages /venv /venv
WORKDIR /app
COPY manage.py ./
COPY config ./config
COPY tokens ./tokens
COPY usage ./usage
COPY gateway ./gateway
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DJANGO_SETTINGS_MODULE=config.settings \
    DATA=/data \
    STATIC_ROOT=/app/static \
    GRANIAN_WORKERS=2
# The values are for this one command, which opens no store and keeps nothing of them.
RUN python -m compileall -q config tokens usage gateway \
    && DATABASE_URL=postgresql://build/build REDIS_URL=redis://build PUBLIC_URL=http://localhost \
        SECRET_KEY=build TOKEN_PEPPERS=1:build-build-build-build-build-build ENCRYPTION_KEYS=build \
        python manage.py collectstatic --no-input
USER 10001:10001
EXPOSE 8000
# The flags are those of `make run`. Respawn: a worker killed with -9 would end the server otherwise. Back-pressure:
# granian counts idle connections against it and would answer nobody beyond its default. Kill: above DRAIN_SECONDS.
CMD ["granian", "--interface", "asgi", "--host", "0.0.0.0", "--port", "8000", "--http", "1", "--loop", "uvloop", \
     "--no-ws", "--respawn-failed-workers", "--respawn-interval", "0.2", "--backlog", "4096", "--backpressure", "8192", \
     "--workers-kill-timeout", "330", "--http1-header-read-timeout", "10000", \
     "--static-path-route", "/static", "--static-path-mount", "/app/static", "config.asgi:application"]
