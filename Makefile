# The one front door; the work is done by the scripts in hack/, which take ARGS: make demo ARGS=--keep
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
VENV := $(or $(LLM_OPERATOR_VENV),.venv)
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DOCKER ?= docker

.PHONY: demo test check audit generate e2e-kind e2e-compose run lint format type-check check-all bench build-docker test-images sbom run-docker logs help

demo: ## From kubectl apply to an answer of a real model, on this machine, without Docker
	hack/demo $(ARGS)

test: ## All tests, or with TIER= unit, control-plane or e2e
	hack/test $(or $(TIER),all) $(ARGS)

e2e-kind: ## The suite on a real kind cluster; ARGS="up" keeps one, "down" removes it, KIND_IMAGE names the nodes' image
	hack/e2e-kind $(ARGS)

e2e-compose: ## The suite on the compose stack, where Docker 25 answers; ARGS="up" keeps it, "down" removes it
	hack/e2e-compose $(ARGS)

check: ## Format, lint, types, import rules, habits, generated files
	hack/check

audit: ## Known vulnerabilities of what is installed, from PyPI and vuln.go.dev; ARGS go to pip-audit
	hack/audit $(ARGS)

generate: ## Write the CRDs, the chart's copies and manifests/install.yaml again
	hack/generate

run: ## Serve a model without Kubernetes; settings come from the environment and .env
	hack/env
	$(VENV)/bin/llm-runtime serve $(ARGS)

lint: ## Lint only
	hack/check lint

format: ## Format the code in place
	hack/check format

type-check: ## Types only
	hack/check types

check-all: check test ## check and test, what CI runs

bench: ## Measure the runtime over HTTP beside its peers; writes docs/benchmarks
	hack/bench $(ARGS)

# What both Dockerfiles take; docs/images.md says what for.
PREFIX = $(if $(REGISTRY),$(patsubst %/,%,$(REGISTRY))/)
BUILD_ARGS = --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null) \
  $(foreach name,BASE_IMAGE BUILD_IMAGE,$(if $($(name)),--build-arg $(name)=$($(name)))) $(BUILD_OPTIONS)
build-docker: engine ## Build both images; REGISTRY=host/path names them for it, PUSH=1 pushes, ACCELERATOR=cpu is small
	@[[ -z "$(PUSH)" || -n "$(REGISTRY)" ]] || { echo "PUSH=1 needs REGISTRY=host/path, a registry that your cluster reaches." >&2; exit 2; }
	$(DOCKER) build --file Dockerfile.operator $(BUILD_ARGS) --tag $(PREFIX)llm-operator:$(VERSION) .
	$(DOCKER) build --file Dockerfile.runtime $(BUILD_ARGS) --build-arg ACCELERATOR=$(or $(ACCELERATOR),cuda) \
	  --tag $(PREFIX)llm-runtime:$(VERSION) .
	$(if $(PUSH),$(DOCKER) push $(PREFIX)llm-operator:$(VERSION) && $(DOCKER) push $(PREFIX)llm-runtime:$(VERSION))
	@hack/image/next "$(PREFIX)" "$(VERSION)" "$(PUSH)"

test-images: engine ## Run the built images as a cluster does: no root, read-only, no network; IMAGES="operator=… runtime=…"
	hack/env
	LLM_OPERATOR_IMAGES="$(or $(IMAGES),operator=$(PREFIX)llm-operator:$(VERSION) runtime=$(PREFIX)llm-runtime:$(VERSION))" \
	  $(VENV)/bin/python -m pytest -q tests/images $(ARGS)

sbom: engine ## Write what is in the built images to dist/*.cdx.json (CycloneDX)
	mkdir -p dist
	$(DOCKER) run --rm --entrypoint cat $(PREFIX)llm-operator:$(VERSION) /opt/llm-operator/sbom.cdx.json >dist/llm-operator.cdx.json
	$(DOCKER) run --rm --entrypoint cat $(PREFIX)llm-runtime:$(VERSION) /opt/llm-runtime/sbom.cdx.json >dist/llm-runtime.cdx.json

# Settings are those of `make run`. Only their names are written, so that no key shows in a terminal or a process list.
SETTINGS := API_KEY AUTHENTICATION MODEL_NAME MODEL_VERSION MLFLOW_TRACKING_URI LOG_LEVEL
run-docker: engine ## Serve from the runtime image on port 8000: make run-docker MODEL=folder, or MODEL_NAME= … as in .env
	$(DOCKER) run --detach --rm --name llm-runtime --publish 127.0.0.1:8000:8000 \
	  $(if $(wildcard .env),--env-file .env) $(foreach name,$(SETTINGS),$(if $($(name)),--env $(name))) \
	  $(if $(MODEL),--volume "$(abspath $(MODEL)):/model:ro" --env MODEL_PATH=/model) \
	  --volume llm-runtime-models:/models $(PREFIX)llm-runtime:$(VERSION)
	@echo "Serving on http://127.0.0.1:8000 once the model is loaded: make logs; stop it with: $(DOCKER) stop llm-runtime"

logs: engine ## Follow the logs of run-docker
	$(DOCKER) logs --follow llm-runtime

help: ## Say what there is
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: engine
engine:
	@$(DOCKER) info >/dev/null 2>&1 || { echo "No Docker engine answers. Start one, or use 'make demo' and 'make run', which need none." >&2; exit 1; }
