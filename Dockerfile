# docker build -t clip .                                      OpenAI's ViT-B/32 from the Hugging Face hub
# docker build -t clip --build-arg CLIP_MODEL=demo/checkpoint --build-arg LABELS=demo/emoji.txt --build-arg VERIFY=0 .
#                                                             the demo model, no hub, no torch
# docker build -t recipe --target reference-serve .           what this replaces: llm-clip and torch in the process
# docker build -t clip --build-arg CLIP_MODELS="clip multilingual" .      several models
# docker run --read-only --cap-drop ALL -p 8080:8080 clip
# docker run -e SERVE_OPTIONS="--setting default_allow_sql off" ... clip     canned queries and pages, no SQL of visitors
#
#   build -> app                                              what serves, and what it serves beside the model
#         -> bake, torch -> reference (-> reference-serve)    the model, and the proof that it is llm-clip's
#   app, reference -> the image

# An id of the catalogue, a hub id, or a folder of the context: demo/checkpoint, deploy/checkpoints/NAME.
ARG CLIP_MODEL=sentence-transformers/clip-ViT-B-32
# Several of them with spaces between, in place of CLIP_MODEL: each gets a folder of its own in /model.
ARG CLIP_MODELS=
# A branch, tag or commit on the hub, of one model.
ARG CLIP_REVISION=
# Where CLIP_MODEL is a text tower alone: the checkpoint of its images, as CLIP_MODEL has it.
ARG CLIP_IMAGES=
# A branch, tag or commit of CLIP_IMAGES on the hub.
ARG CLIP_IMAGES_REVISION=
ARG CLIP_PRECISION=auto
# Label sets: imagenet, and files with one label a line, demo/emoji.txt or deploy/labels/NAME.txt, with spaces between. Of
# several models only clip gets imagenet, which takes minutes, and those that are named: imagenet@datacomp-b32-256.
ARG LABELS=imagenet
# A mirror of the Hugging Face hub, in place of the hub itself.
ARG HF_ENDPOINT
# 0 skips the comparison with another library, and with it the download of torch; the bake's own checks are never skipped.
ARG VERIFY=1
# That library: own is the one that the model is for, llm-clip, sentence-transformers, open_clip or transformers.
ARG REFERENCE=own
# From the index without CUDA; of one release, for torchvision imports beside no other torch.
ARG TORCH="torch==2.13.0 torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"
# The server ends after so long without a request: 90s, 10m, 2h; empty: never. The environment variable overrules it.
ARG SLEEP_AFTER=10m
ARG PY=3.13

# Every package that any stage installs is locked with its hash, but torch; the lock files are made by `make lock`.
FROM python:${PY}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ONLY_BINARY=:all:
WORKDIR /src
COPY deploy/requirements-bake.txt ./
RUN pip install --require-hashes --no-deps -r requirements-bake.txt

FROM build AS app
RUN python -m venv --without-pip /app
COPY deploy/requirements.txt ./
RUN pip --python /app/bin/python install --no-compile --require-hashes --no-deps -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY plugins plugins
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && pip --python /app/bin/python install --no-compile --no-deps /wheels/*.whl
# 56 MB that are never loaded: tests, headers, a Fortran compiler's front end, converters, and a second onnxruntime, for C.
RUN cd /app/lib/python*/site-packages && find . -type d -name tests -prune -exec rm -r {} + \
 && find . -regextype posix-extended -regex '.*[.](pyi|pxd|h|a)' -delete \
 && rm -rf numpy/f2py onnxruntime/transformers onnxruntime/quantization onnxruntime/tools onnxruntime/datasets \
           onnxruntime/capi/libonnxruntime.so.*
# Bytecode that is never compared with its source: a copy may change times, and at run time nothing could be written.
# Not of openai (13 MB): llm's commands import it, the server does not.
RUN /app/bin/python -m compileall -q -j 0 -x '/site-packages/openai/' --invalidation-mode unchecked-hash /app/lib
# Databases are served immutable, as SQLite can write no -wal beside them: what is in one now is folded in first.
WORKDIR /srv
COPY deploy/databases ./
RUN list() { find . -maxdepth 1 -regextype posix-extended -regex '.*\.(db|sqlite3?)' -printf '%P\0'; } \
 && list | xargs -0 -r -n 1 python -c "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('pragma journal_mode = delete')" \
 && list | xargs -0 -r /app/bin/datasette inspect --inspect-file inspect-data.json --
# settings.json: neither looking for facets in a table of vectors nor streaming a table as CSV is for a small machine.
COPY metadata.json deploy/settings.json ./
RUN chmod -R a+rX .

# Only what a bake depends on, so that no other change bakes again. The model's package is not installed: the entry
# points of the distribution name packages that are not here.
FROM build AS bake
COPY plugins/llm_clip_onnx llm_clip_onnx
COPY demo/checkpoint demo/checkpoint
COPY deploy/checkpoints deploy/checkpoints
ENV HF_HOME=/src/hub
ARG CLIP_MODEL
ARG CLIP_MODELS
ARG CLIP_REVISION
ARG CLIP_IMAGES
ARG CLIP_IMAGES_REVISION
ARG CLIP_PRECISION
ARG HF_ENDPOINT
RUN set -e; set -- ${CLIP_MODELS:-$CLIP_MODEL}; \
    test $# = 1 || test -z "$CLIP_REVISION$CLIP_IMAGES$CLIP_IMAGES_REVISION" || { echo "CLIP_REVISION and CLIP_IMAGES are of one model, not of $#"; exit 1; }; \
    for model in "$@"; do \
      to=/model; test -z "$CLIP_MODELS" || to="/model/$(basename "$model")"; \
      python -m llm_clip_onnx bake "$model" ${CLIP_REVISION:+--revision "$CLIP_REVISION"} \
        ${CLIP_IMAGES:+--images "$CLIP_IMAGES"} ${CLIP_IMAGES_REVISION:+--images-revision "$CLIP_IMAGES_REVISION"} --precision "$CLIP_PRECISION" --to "$to"; \
    done
COPY demo/emoji.txt demo/
COPY deploy/labels deploy/labels
ARG LABELS
RUN set -e; set -- ${CLIP_MODELS:-$CLIP_MODEL}; \
    for labels in $LABELS; do case "$labels" in \
      *@*) case " $* " in *" ${labels#*@} "*) ;; *) echo "LABELS: $labels names none of the models $*"; exit 1 ;; esac ;; \
    esac; done; \
    for labels in $LABELS; do for model in "$@"; do \
      to=/model; test -z "$CLIP_MODELS" || to="/model/$(basename "$model")"; \
      case "$labels" in \
        imagenet) if test $# = 1; then ! grep -q '"logit_bias"' "$to/manifest.json" || continue; \
                  else grep -q '"id": "clip"' "$to/manifest.json" || continue; fi; from= ;; \
        imagenet@*) test "$model" = "${labels#*@}" || continue; from= ;; \
        *) from="--labels $labels" ;; \
      esac; \
      python -m llm_clip_onnx labels bake "$(basename "${labels%@*}" .txt)" "$to" $from; \
    done; done

FROM build AS torch
ARG VERIFY
ARG TORCH
RUN test "$VERIFY" = 0 || pip install $TORCH
COPY deploy/requirements-reference.txt ./
RUN test "$VERIFY" = 0 || pip install --require-hashes --no-deps -r requirements-reference.txt

# The image takes the models from here, so that none gets into it that was not held against the library it is for.
FROM torch AS reference
COPY --from=bake /src ./
COPY --from=bake /model /model
ENV HF_HOME=/src/hub
ARG VERIFY
ARG REFERENCE
ARG HF_ENDPOINT
RUN test "$VERIFY" = 0 || find /model -name manifest.json -printf '%h\n' | xargs -n 1 python -m llm_clip_onnx verify --reference "$REFERENCE"

# The recipe as people run it, for who wants it or wants to compare: same URLs, same vectors, none of our plugins.
# torch wants a /tmp to write to: docker run --read-only --tmpfs /tmp.
FROM reference AS reference-serve
ARG VERIFY
COPY deploy/reference/link_checkpoint.py ./
COPY --from=app /srv /srv
COPY deploy/reference/plugins /srv/plugins
RUN test "$VERIFY" = 0 || python link_checkpoint.py "$(test -e /model/manifest.json && echo /model || echo /model/clip)" /srv/clip-ViT-B-32
WORKDIR /srv
ARG SLEEP_AFTER
ENV HF_HUB_OFFLINE=1 LLM_USER_PATH=/tmp HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 SLEEP_AFTER=$SLEEP_AFTER
USER 10001:10001
EXPOSE 8080
CMD ["sh", "-c", "exec datasette serve /srv --memory --host 0.0.0.0 --cors --port ${PORT:-8080} $SERVE_OPTIONS"]

FROM python:${PY}-slim
LABEL org.opencontainers.image.title="datasette-clip" \
      org.opencontainers.image.description="CLIP embeddings in Datasette, from one small process without torch" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=reference /model /model
COPY --from=app /app /app
COPY --from=app /srv /srv
# Nothing is fetched and nothing is written: runs as any user, on a read-only root. llm wants a folder that exists.
# numpy's threads spin for 2^26 clocks before they sleep, 0.09 s of CPU of each start on 2 cores; 2^4 is the least.
# Large blocks of memory go back to the system at once: else 25 visitors with large results do not fit into 256 MB.
ENV PATH=/app/bin:$PATH CLIP_MODEL_DIR=/model LLM_USER_PATH=/tmp HOME=/tmp HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 MALLOC_MMAP_THRESHOLD_=1000000 OPENBLAS_THREAD_TIMEOUT=4
# The official image has no bytecode of the standard library, and to compile it anew costs every cold start 0.4 s of CPU.
# Answering once writes that of what is loaded, and shows that the image answers.
RUN model=$(python -c "from llm_clip_onnx import models; print(models.default_id())") \
 && PYTHONDONTWRITEBYTECODE= datasette serve /srv --memory --get "/_memory.json?sql=select+hex(llm_embed('$model','hello'))" \
 && pip uninstall -y --root-user-action ignore pip
WORKDIR /srv
ARG SLEEP_AFTER
ENV SLEEP_AFTER=$SLEEP_AFTER
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# By bash, for it starts in less than a tenth of the time that Python takes; 200 means that the model is ready.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/${PORT:-8080} && printf 'GET /-/clip/health HTTP/1.0\\r\\n\\r\\n' >&3 && read -r -t 4 _ status _ <&3 && [ \"$status\" = 200 ]"]
CMD ["sh", "-c", "exec datasette serve /srv --memory --host 0.0.0.0 --cors --port ${PORT:-8080} $SERVE_OPTIONS"]
