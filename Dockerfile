# One image for web, worker and migrate: the command tells which. Not needed for `make up`.
#
# PyTorch: the default build for Linux brings gigabytes of CUDA. For a CPU image name an index that
# has CPU builds: docker build --build-arg PIP_EXTRA_INDEX_URL=ADDRESS_OF_PYTORCHS_CPU_INDEX .

FROM python:3.12-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/textmill
# The packages first: they change seldom, and this layer is the big one.
COPY requirements.lock requirements-nodeps.lock ./
RUN /opt/textmill/bin/pip install --requirement requirements.lock \
    && /opt/textmill/bin/pip install --no-deps --requirement requirements-nodeps.lock
COPY . .
RUN /opt/textmill/bin/pip install --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
# The worker builds its kernels for the processor that it meets; without a compiler it is slower.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --home-dir /var/lib/textmill --no-create-home textmill \
    && install --directory --owner=textmill --group=textmill /var/lib/textmill
COPY --from=build /opt/textmill /opt/textmill
ENV PATH=/opt/textmill/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/textmill \
    TEXTMILL_HOME=/var/lib/textmill \
    TEXTMILL_HOST=0.0.0.0 \
    TEXTMILL_LOG_FORMAT=json
WORKDIR /var/lib/textmill
VOLUME /var/lib/textmill
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# For the web process, which is the default; the other services of docker-compose.yml say otherwise.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-m", "textmill.cli.health", "http://127.0.0.1:8000/healthz"]
ENTRYPOINT ["textmill"]
CMD ["web"]
