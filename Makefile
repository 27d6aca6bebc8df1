# Everything sets itself up: `make demo` and `make test` need only Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
HELM := .cache/helm/.ready
# Two processes share the tests, file by file: each starts its servers once. When one of them dies, the run
# ends at once and names the test: a new process might wait for work without end.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
FLAGS ?=
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= gan-training
DOCKER_FLAGS ?=
CHROMIUM := chromium chromium-driver fonts-dejavu-core

# The chart is checked against KubeRay's schemas where they lie beside the project.
export KUBERAY_CRDS ?= $(abspath $(wildcard ../shared/kuberay-crds))
# So are the values for its dependencies, against what these publish.
export SUBCHARTS ?= $(abspath $(wildcard ../shared/subcharts))
# And so are other projects' weights, with what their networks answer.
export ORACLES ?= $(abspath $(wildcard ../shared/oracles))
export RAY_USAGE_STATS_ENABLED := 0
# Ray makes its token by itself; setting the mode silences its warning.
export RAY_AUTH_MODE := token
# Where it is set, each of the many processes of a run would compile the service anew.
export PYTHONDONTWRITEBYTECODE :=
# Silences mkdocs-material's note about its successor.
export NO_MKDOCS_2_WARNING := 1

.PHONY: help demo ui quick test chaos chart browser docs site lint format lock version image sbom audit bench quick-bench collapse sweep recovery quality gpu gpu-service clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml requirements-torch.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --requirement requirements-torch.txt
	$(PIP) --require-hashes --no-deps --requirement requirements-dev.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $(READY)

$(HELM): helm/binaries.py | $(READY)
	$(BIN)/python helm/binaries.py .cache/helm
	touch $(HELM)

demo: $(READY) ## Train on real digits for a few minutes, and print where the picture is
	$(BIN)/python -m service.pack digits data/digits --channels gray
	RAY_ADDRESS=local $(BIN)/python -m service.train --preset digits
	@echo "the curves and pictures in MLflow: make ui"

ui: $(READY) ## Serve MLflow with the demo's run at http://127.0.0.1:5000
	@if [ ! -e runs/digits/mlflow.db ]; then echo "no run yet: make demo first" >&2; exit 1; fi
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///runs/digits/mlflow.db

quick: $(READY) $(HELM) ## Check what a change most likely broke, in two minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(PYTEST) -m "not stack and not slow"

test: $(READY) $(HELM) ## Run all tests on real servers; FLAGS=… are pytest's
	HELM_REQUIRED=1 $(PYTEST) $(FLAGS)

chaos: $(READY) ## Kill and stop workers, nodes, drivers and S3 under real runs, and check that the runs continue
	$(BIN)/python -m pytest -s tests/chaos $(FLAGS)

chart: $(READY) $(HELM) ## Check the Helm chart with helm 4.3 and 3.17
	HELM_REQUIRED=1 $(PYTEST) tests/helm

browser: $(READY) ## Check in Chromium that MLflow shows a run, its curves and grids; SCREENSHOTS=docs saves pictures
	@if [ ! -x /usr/bin/chromium ] || [ ! -x /usr/bin/chromedriver ]; then \
		if [ "$$(id -u)" != 0 ]; then echo "missing: apt-get install $(CHROMIUM)" >&2; exit 1; fi; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends $(CHROMIUM); \
	fi
	$(BIN)/python -m pytest tests/browser

docs: $(READY) ## Write docs/configuration.md and the chart's dashboard from their sources
	$(BIN)/python -m service.config.reference > docs/configuration.md
	$(BIN)/python helm/dashboard.py > helm/gan-training/files/dashboard.json

site: $(READY) ## Build the docs site into site/; a broken link or anchor fails it
	$(BIN)/mkdocs build --strict
	@echo "open site/index.html; its search needs $(BIN)/python -m http.server --bind 127.0.0.1 --directory site"

lock: $(READY) ## Renew requirements*.txt: the newest versions that fit pyproject.toml
	$(BIN)/python .ci/lock.py

version: $(READY) ## Copy the version in pyproject.toml to the chart and to the files of `ray up`
	$(BIN)/python .ci/version.py

image: ## Build the service's image with docker; IMAGE=NAME and DOCKER_FLAGS=… as you need
	docker build --file cluster/Dockerfile --tag "$(IMAGE):$(VERSION)" $(DOCKER_FLAGS) \
		--build-arg SERVICE_VERSION="$(VERSION)" --build-arg SERVICE_GIT_COMMIT="$$(git rev-parse HEAD)" .

sbom: $(READY) ## Write sbom.json, the bill of materials of what the image installs (CycloneDX)
	cat requirements-torch.txt requirements.txt | $(BIN)/uv tool run --from cyclonedx-bom==7.1.0 \
		cyclonedx-py requirements - --pyproject pyproject.toml --output-reproducible --output-file sbom.json

audit: $(READY) ## Look the locked packages up among known vulnerabilities; it asks pypi.org
	$(BIN)/uv tool run --from pip-audit==2.9.0 pip-audit --require-hashes --disable-pip \
		--requirement requirements.txt

lint: $(READY) ## Check style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Measure the step, two workers' steps, the service around them, and loading from shards
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.data

quick-bench: $(READY) ## Run the benchmarks without their slow parts, in a few minutes
	$(BIN)/python -m benchmarks.step --quick
	$(BIN)/python -m benchmarks.data --quick

collapse: $(READY) ## Drive trainings to collapse and write docs/collapse.md, in about an hour
	$(BIN)/python -m benchmarks.collapse

sweep: $(READY) ## Sweep eight trials on digits, in about a quarter of an hour
	$(BIN)/python -m benchmarks.sweep

recovery: $(READY) ## Measure what a death, a notice and a checkpoint cost, in about ten minutes
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.checkpoint

quality: $(READY) ## Train each family on Fashion-MNIST and write docs/families.md, in about two hours
	$(BIN)/python -m benchmarks.quality

gpu: $(READY) ## Check and measure the training on a GPU, in some minutes
	$(BIN)/python -m benchmarks.gpu

gpu-service: $(READY) ## Run the service whole on this machine's GPUs, in some minutes
	$(BIN)/python -m benchmarks.gpu_service

clean: ## Remove the environment, the site and the tools' caches; runs and data stay
	rm -rf $(VENV) site sbom.json .cache .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
