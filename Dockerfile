# One image with two commands: `agent-gateway serve` (default) and `tools-server`.
# `make image-digests` replaces the tag by the digest that the registry has for it.
ARG PYTHON_IMAGE=python:3.13-slim
FROM ${PYTHON_IMAGE}

# nss_wrapper names the user of the embedded Postgres where a container runs as a user without a name (OpenShift).
RUN apt-get update && apt-get install -y --no-install-recommends libnss-wrapper && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements-uv.lock requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements-uv.lock
RUN uv pip install --system --no-cache --compile-bytecode --require-hashes -r requirements.lock
COPY pyproject.toml LICENSE README.md alembic.ini mcp.json ./
COPY gateway gateway
COPY gateway_console gateway_console
COPY gateway_runtime gateway_runtime
COPY tools_server tools_server
COPY migrations migrations
# OpenShift runs a container as any user of the group root, so that group has the rights of the user. Volumes take over
# owner and mode of the directories here.
RUN uv pip install --system --no-cache --no-deps --editable . \
 && python -m compileall -q gateway gateway_console gateway_runtime tools_server migrations \
 && useradd --system --create-home --uid 10001 gateway \
 && install -d -o gateway -g root -m 770 /home/gateway /home/gateway/data \
 && install -d -o gateway -g root -m 775 /secrets/postgres /secrets/redis /secrets/tools

USER 10001
ENV HOME=/home/gateway GATEWAY_DATA_DIR=/home/gateway/data LOG_JSON=true
EXPOSE 8000 8001 8002
CMD ["agent-gateway", "serve"]
