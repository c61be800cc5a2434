# `make train`: everything from a fresh clone to a promoted policy. `make test`: the tests. `make up`/`down`: local stack.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# uv and pip look for wheels in the same folder, if there is one.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Waiting threads that spin cost a factor of 3 to 5 on busy cores; nothing phones home.
export OMP_WAIT_POLICY = PASSIVE
# Freed tensors stay in the process and are not mapped anew: about 5 % of a run's time.
export MALLOC_TRIM_THRESHOLD_ = 1073741824
export MALLOC_MMAP_THRESHOLD_ = 33554432
export DO_NOT_TRACK = true
export DVC_NO_ANALYTICS = 1
export MLFLOW_DISABLE_TELEMETRY = true
export HF_HUB_DISABLE_TELEMETRY = 1
export ORT_DISABLE_TELEMETRY = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: train test test-long lint lock up down clean help
help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

# A CPU build of torch in PIP_FIND_LINKS goes before the index's build, which pip would prefer for its stated hash.
# The lock has every package but the CUDA libraries, which torch's CUDA build pins: the last line brings those.
INSTALL := $(BIN)/python -m pip install --quiet
$(READY): pyproject.toml setup.py infra/requirements.lock
	$(PYTHON) -m venv $(VENV)
	sed -n '/^torch==/,/[^\\]$$/p' infra/requirements.lock > $(VENV)/torch.lock
	$(INSTALL) --no-index --require-hashes --no-deps -r $(VENV)/torch.lock 2>/dev/null || echo "torch: from the index"
	$(INSTALL) --require-hashes --no-deps -r infra/requirements.lock
	$(INSTALL) --no-build-isolation -e '.[dev]'
	touch $@

train: $(READY)  ## set up, run the pipeline, promote the policy
	unmask repair
	dvc repro
	unmask promote

# A file is one worker's: its fixtures are made once. The files come in their own order, tests/e2e first: those take
# longest, and many small ones are left for the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: $(READY)   ## set up, run the tests
	$(PYTEST) -m "not long"

test-long: $(READY)  ## the README's first minutes, infra's services, full disks, a study of two cells
	$(PYTEST) -m long

STRICT := 770
lint: $(READY)   ## ruff and the type checker, by its standard rules and, counted, by its strict ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	@count=$$($(BIN)/basedpyright -p infra/strict.json | sed -n 's/ errors,.*//p'); \
	echo "strict type errors: $$count of at most $(STRICT). Lower STRICT when they fall."; test "$$count" -le $(STRICT)

lock:            ## write infra/requirements.lock anew (needs uv; versions are kept)
	infra/lock.sh

up: $(READY)     ## Prefect server, workers, deployments, MLflow UI
	$(BIN)/python -m flows.stack up

down:            ## take them down
	$(BIN)/python -m flows.stack down

clean:           ## remove the environment; data, outputs and runs stay
	rm -rf $(VENV)
