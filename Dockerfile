# For GPUs:   docker build -t moram-dist .
#   docker run --gpus all --shm-size 8g -v "$PWD/runs:/moram/runs" moram-dist --benchmark demo
# For CPUs, smaller:   docker build --target cpu -t moram-dist-cpu .
#   Much smaller with --build-arg PIP_EXTRA_INDEX_URL=... of torch's builds for CPUs.
# What is in an image:   docker run --entrypoint python moram-dist launch/doctor.py
# The user in it is no root but number 10001, and must be able to write the folder that is mounted at runs.

FROM python:3.12.12-slim-bookworm AS cpu

# DeepSpeed compiles its CPU extension when it is first used.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 moram && mkdir /moram && chown moram /moram
USER 10001
WORKDIR /moram

ENV PATH=/moram/.venv/bin:$PATH TORCH_EXTENSIONS_DIR=/moram/.venv/torch_extensions
ARG PIP_EXTRA_INDEX_URL
COPY --chown=moram requirements.txt requirements-gpu.txt pyproject.toml ./
RUN python3 -m venv .venv && pip install --no-cache-dir -r requirements.txt
COPY --chown=moram moram_dist moram_dist
COPY --chown=moram launch launch
COPY --chown=moram eval eval
COPY --chown=moram ds_configs ds_configs
COPY --chown=moram __main__.py ./
RUN mkdir runs

ENTRYPOINT ["deepspeed", "launch/train.py", "--ds_config", "ds_configs/zero3.json"]

# torch 2.13 of the package index is for CUDA 13.0, and flash-attn builds with an nvcc of the same.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS gpu

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev g++ \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 moram && mkdir /moram && chown moram /moram
USER 10001
WORKDIR /moram

ENV PATH=/moram/.venv/bin:$PATH TORCH_EXTENSIONS_DIR=/moram/.venv/torch_extensions
COPY --chown=moram requirements.txt requirements-gpu.txt pyproject.toml ./
RUN python3 -m venv .venv \
    && pip install --no-cache-dir -r requirements.txt wheel==0.45.1 \
    && pip install --no-cache-dir --no-build-isolation -r requirements-gpu.txt
COPY --chown=moram moram_dist moram_dist
COPY --chown=moram launch launch
COPY --chown=moram eval eval
COPY --chown=moram ds_configs ds_configs
COPY --chown=moram __main__.py ./
RUN mkdir runs

ENTRYPOINT ["deepspeed", "launch/train.py", "--ds_config", "ds_configs/zero3.json"]
