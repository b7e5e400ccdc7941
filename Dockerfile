# sam3label on an NVIDIA GPU. The host needs its driver and the NVIDIA Container Toolkit; CUDA itself comes with torch.
#
#   docker build -t sam3label .
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" -v "$HOME/.cache/huggingface:/cache/huggingface" \
#       sam3label run photos -c concepts.yaml -o runs/site-a
#
# --ipc=host: decoded photos go from worker processes to the model through shared memory, of which a container has
# 64 MB; without it they go through files, which is slower.
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface \
    PYTORCH_ALLOC_CONF=expandable_segments:True

WORKDIR /opt/sam3label
COPY pyproject.toml README.md LICENSE NOTICE constraints.txt ./
COPY sam3label ./sam3label
# e.g. --build-arg EXTRAS="[review,s3]"
ARG EXTRAS=""
RUN pip install -c constraints.txt ".${EXTRAS}"

# A user without rights; files it writes into a mounted folder belong to this number: docker run --user "$(id -u)" for yours.
RUN useradd --create-home --uid 1000 labeler && mkdir -p /cache/huggingface && chmod 777 /cache /cache/huggingface
USER labeler
WORKDIR /work
ENTRYPOINT ["sam3label"]
CMD ["--help"]
