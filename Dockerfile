# One image with two commands: `agent-gateway serve` (default) and `tools-server`.
# `make image-digests` replaces the tag by the digest that the registry has for it.
ARG PYTHON_IMAGE=python:3.13-slim
FROM ${PYTHON_IMAGE}

WORKDIR /app
COPY requirements-uv.lock requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements-uv.lock
RUN uv pip install --system --no-cache --compile-bytecode --require-hashes -r requirements.lock
COPY pyproject.toml LICENSE README.md alembic.ini mcp.json ./
COPY gateway gateway
COPY gateway_runtime gateway_runtime
COPY tools_server tools_server
COPY migrations migrations
RUN uv pip install --system --no-cache --no-deps --editable . && python -m compileall -q gateway gateway_runtime tools_server \
 && useradd --system --create-home --uid 10001 gateway \
 && install -d -o gateway -g gateway -m 700 /home/gateway/data

USER gateway
ENV GATEWAY_DATA_DIR=/home/gateway/data LOG_JSON=true
EXPOSE 8000 8001
CMD ["agent-gateway", "serve"]
