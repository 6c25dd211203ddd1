# CUDA image with everything to train:  docker build -t moram-dist .
#   docker run --gpus all -v "$PWD/runs:/moram/runs" moram-dist --benchmark demo
FROM nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev git ninja-build \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home moram && mkdir /moram && chown moram /moram
USER moram
WORKDIR /moram

ENV PATH=/moram/.venv/bin:$PATH TORCH_EXTENSIONS_DIR=/moram/.venv/torch_extensions
COPY --chown=moram requirements.txt requirements-gpu.txt ./
RUN python3 -m venv .venv \
    && pip install --no-cache-dir -r requirements.txt \
    && pip install --no-cache-dir --no-build-isolation -r requirements-gpu.txt
COPY --chown=moram moram_dist moram_dist
COPY --chown=moram launch launch
COPY --chown=moram eval eval
COPY --chown=moram ds_configs ds_configs

ENTRYPOINT ["deepspeed", "launch/train.py", "--ds_config", "ds_configs/zero3.json"]
