# dist_moe with the versions of everything that the tests were run with (constraints.txt), from the package index.
#
#   docker build --tag dist-moe .                                                                   CPUs
#   docker build --tag dist-moe --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .    NVIDIA GPUs
#   docker run --rm --volume "$PWD:/work" dist-moe train --config run.yaml                          what is in . and written there
#   docker run --rm --gpus all --shm-size 8g --volume "$PWD:/work" --entrypoint deepspeed dist-moe /opt/dist_moe/launch/train.py --config run.yaml
#
# CUDA's libraries come with torch; the host needs a driver only.
FROM python:3.12-slim-bookworm

# A compiler and ninja: DeepSpeed's and Triton's helpers are built when they are first used.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ninja-build \
    && rm -rf /var/lib/apt/lists/*

# In the same environment for everybody: no user's packages, no compiled files of root's.
ENV PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/dist_moe
COPY constraints.txt ./

# torch goes first and alone, because its builds come from different places; nothing after it may change it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)"

COPY pyproject.toml README.md LICENSE ./
COPY dist_moe dist_moe
RUN pip install --constraint constraints.txt '.[plots]' && dist-moe --version
COPY launch launch
COPY ds_configs ds_configs
COPY examples examples

# Mounted files of a host's user 1000 can be written. For another user: docker run --user.
RUN useradd --create-home --uid 1000 moe && mkdir /work && chown moe /work
USER 1000
WORKDIR /work
ENTRYPOINT ["dist-moe"]
CMD ["--help"]
