# Two images: `docker build --target web .` (also runs `textmill migrate`) and `--target worker`.
# `make up` needs neither.
#
# PyTorch is only in the worker's image. Its default build for Linux brings gigabytes of CUDA libraries;
# for a CPU image, name a package index with CPU builds: --build-arg PIP_EXTRA_INDEX_URL=INDEX.

# A digest may be appended: --build-arg PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/textmill

# The locked packages come before the sources: they change seldom, and their layer is the largest.
FROM build AS build-web
COPY locks/web.txt locks/oidc.txt ./locks/
RUN /opt/textmill/bin/pip install --require-hashes --no-deps --requirement locks/web.txt \
    && /opt/textmill/bin/pip install --require-hashes --no-deps --requirement locks/oidc.txt
COPY . ./
RUN /opt/textmill/bin/pip install --no-deps --no-build-isolation .

FROM build AS build-worker
ARG PIP_EXTRA_INDEX_URL=""
COPY locks/worker.txt locks/torch.txt ./locks/
RUN /opt/textmill/bin/pip install --require-hashes --no-deps --requirement locks/worker.txt \
    && /opt/textmill/bin/pip install --requirement locks/torch.txt
COPY . ./
RUN /opt/textmill/bin/pip install --no-deps --no-build-isolation .

FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --uid 10001 --user-group --home-dir /var/lib/textmill --no-create-home textmill \
    && install --directory --owner=textmill --group=textmill /var/lib/textmill
ENV PATH=/opt/textmill/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/textmill \
    TEXTMILL_HOME=/var/lib/textmill \
    TEXTMILL_HOST=0.0.0.0 \
    TEXTMILL_ALLOWED_HOSTS=127.0.0.1,localhost \
    TEXTMILL_LOG_FORMAT=json
WORKDIR /var/lib/textmill
VOLUME /var/lib/textmill
STOPSIGNAL SIGTERM
ENTRYPOINT ["textmill"]

FROM runtime AS worker
# The worker compiles its kernels for the processor it runs on; without a compiler it is slower.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-worker /opt/textmill /opt/textmill
USER 10001:10001
CMD ["worker"]

# The last stage is the one that is built without --target.
FROM runtime AS web
COPY --from=build-web /opt/textmill /opt/textmill
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-m", "textmill.cli.health", "http://127.0.0.1:8000/healthz"]
CMD ["web"]
