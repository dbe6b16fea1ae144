# Two images: `docker build --target serve .` makes a small server, `docker build .` the image for OVH AI Training.

# The server: no PyTorch, no writable files, not root. The exported model is a volume:
#   docker run --read-only -p 8000:8000 -v "$PWD/served:/model:ro" IMAGE
FROM python:3.11-slim-bookworm AS packages

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The package's requirements that `serve` needs; the others are for training.
WORKDIR /build
COPY settings.ini constraints.txt ./
RUN python -c "from configparser import ConfigParser as C; c = C(delimiters=['=']); c.read('settings.ini'); \
d = c['DEFAULT']; names = ('onnxruntime>', 'numpy>', 'pillow>', 'pi-heif>', 'fastcore>'); \
print('\n'.join([o for o in d['requirements'].split() if o.startswith(names)] + d['serve_requirements'].split()))" \
    > needed.txt && pip install -c constraints.txt --prefix=/packages -r needed.txt && pip install "setuptools>=77"

COPY setup.py pyproject.toml MANIFEST.in README.md ./
COPY basegun_fastai ./basegun_fastai
RUN pip install --no-deps --no-build-isolation --prefix=/packages . \
    && find /packages -type d -name tests -prune -exec rm -rf {} +

FROM python:3.11-slim-bookworm AS serve

ENV PYTHONUNBUFFERED=1
COPY --from=packages /packages /usr/local
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["basegun-fastai", "serve", "/model", "--host", "0.0.0.0"]

# The image for OVH AI Training: the command, JupyterLab and TensorBoard, as user 42420 with HOME=/workspace.
FROM python:3.11-slim-bookworm

# A V100S (sm_70) needs a PyTorch that still has Volta in its wheels:
#   --build-arg TORCH=2.10.0 --build-arg TORCHVISION=0.25.0 --build-arg TORCH_INDEX=<PyTorch's own index for cu126>
ARG TORCH=2.15.0
ARG TORCHVISION=0.29.2
ARG TORCH_INDEX=

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/workspace

# The compiler for `train --compile`.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# PyTorch is the largest part of the image and changes least.
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$TORCH" "torchvision==$TORCHVISION"

# Then the other requirements, without the package itself, because its code changes most.
WORKDIR /build
COPY settings.ini constraints.txt ./
RUN grep -vE '^(torch|torchvision)==' constraints.txt > others.txt \
    && python -c "from configparser import ConfigParser as C; c = C(delimiters=['=']); c.read('settings.ini'); \
d = c['DEFAULT']; print('\n'.join(o for o in (d['requirements'] + ' ' + d['notebook_requirements']).split()))" > needed.txt \
    && pip install -c others.txt "torch==$TORCH" "torchvision==$TORCHVISION" "setuptools>=77" -r needed.txt

COPY setup.py pyproject.toml MANIFEST.in README.md ./
COPY basegun_fastai ./basegun_fastai
RUN pip install --no-deps --no-build-isolation . && rm -rf /build/*

WORKDIR /workspace
COPY nbs/tutorials/train.ipynb ./
RUN chown -R 42420:42420 /workspace
USER 42420:42420

EXPOSE 8080 6006
# Without a command: JupyterLab; its token is in the job's log.
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8080", "--no-browser"]
