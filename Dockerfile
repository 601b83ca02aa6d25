# The gateway as a container: docs/image.md says how it is used and checked.

FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY gateway gateway
COPY transports transports
COPY plugins plugins
RUN python3 -m venv /opt/gateway \
    && /opt/gateway/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt . \
    && /opt/gateway/bin/pip uninstall --yes --quiet pip setuptools \
    && /opt/gateway/bin/python -m compileall -q /opt/gateway/lib

FROM python:3.11-slim-bookworm
RUN groupadd --system --gid 10001 gateway \
    && useradd --system --uid 10001 --gid gateway --home-dir /data --no-create-home --shell /usr/sbin/nologin gateway \
    && install --directory --owner gateway --group gateway --mode 0750 /data \
    && install --directory /etc/gateway \
    && touch /etc/gateway/users
COPY --from=build /opt/gateway /opt/gateway
COPY config/container.yaml /etc/gateway/gateway.yaml
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_HEALTH_URL=http://127.0.0.1:8080/healthz
WORKDIR /data
USER gateway
VOLUME /data
EXPOSE 1883 5672
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen(os.environ['GATEWAY_HEALTH_URL'], timeout=4)"]
ENTRYPOINT ["gateway"]
CMD ["run", "/etc/gateway/gateway.yaml"]
