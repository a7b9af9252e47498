# docker build -t vlmrm_exp .                              a torch with CUDA, as PyPI has it
# docker build -t vlmrm_exp --build-arg TORCH_INDEX=URL .  for CPUs: PyTorch's index of CPU wheels
# docker run --rm -v "$PWD/outputs:/app/outputs" -v vlmrm-cache:/cache vlmrm_exp
# docker run --rm --gpus all ... vlmrm_exp python -m vlmrm_exp task=kneeling clip=bigG name=mine
FROM python:3.12-slim-trixie

ARG TORCH_INDEX=""
ARG EXTRAS=hf

# What scripts/setup.sh would ask for: git and make, and a GL library that draws without a screen.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        git libegl1 libgl1-mesa-dri libopengl0 make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 1000 --create-home runner \
    && mkdir -p /app/outputs /cache \
    && chown -R 1000 /app /cache
USER 1000
WORKDIR /app

COPY --chown=1000 . .
RUN PIP_NO_CACHE_DIR=1 make setup EXTRAS="$EXTRAS" TORCH_INDEX="$TORCH_INDEX"

# Drawing on a GPU needs the driver's "graphics" beside "compute".
ENV PATH=/app/.venv/bin:$PATH \
    HF_HOME=/cache/huggingface \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility
# Not make, which would hide the exit code 75 of a run that wants to go on.
CMD ["python", "-m", "vlmrm_exp"]
