SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BUNDLE := build/ml-100k/bundle
TARGET ?= 127.0.0.1:50051
LOAD = -u 16 -r 16 -t 30s
PIP_PROGRESS := awk '/^Collecting/ {printf "."; fflush()} /^Installing collected/ {printf " installing"; fflush()} END {print ""}'

.PHONY: setup run test fuzz lint typecheck docs-check protos bench bench-full results loadtest deploy-tools deploy-check image-check clean
.DEFAULT_GOAL := run

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setting up .venv (a minute or two)"
	@$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[train,importance,text,peft,ray,load,redis,faiss,rtx,executorch,sign,jwt,otel,web,tensorboard,dev]' | $(PIP_PROGRESS)
	@touch $(READY)

run: setup
	@$(BIN)/fathom build ml-100k --out $(BUNDLE)
	@$(BIN)/fathom demo $(BUNDLE)

test: lint typecheck
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

fuzz: setup
	@MESSAGES=10000 OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/serving/test_fuzz.py

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

typecheck: setup
	@$(BIN)/mypy

docs-check: setup
	@$(BIN)/pytest -q tests/test_docs.py tests/test_settings_pages.py tests/benchmarks/test_tables.py tests/benchmarks/test_registry.py

protos: setup
	@$(BIN)/python -m grpc_tools.protoc -I protos --python_out=protos --pyi_out=protos --grpc_python_out=protos protos/fathom/v1/recommender.proto
	@sed -i 's/^from fathom\.v1 import/from fathom.protos.fathom.v1 import/' protos/fathom/v1/recommender_pb2_grpc.py

bench: setup
	@$(BIN)/fathom build ml-100k --out $(BUNDLE)
	@$(BIN)/python -m fathom.benchmarks.short $(BUNDLE) --data build/ml-100k/dataset --results build/bench

bench-full: setup
	@$(BIN)/fathom build ml-100k --out $(BUNDLE)
	@$(BIN)/python -m fathom.benchmarks run training_throughput ml-100k=build/ml-100k/dataset
	@$(BIN)/python -m fathom.benchmarks run parity $(BUNDLE)
	@$(BIN)/python -m fathom.benchmarks run engine_depth $(BUNDLE)
	@$(BIN)/python -m fathom.benchmarks run selector_latency $(BUNDLE)
	@$(BIN)/python -m fathom.benchmarks run server_start $(BUNDLE)
	@$(BIN)/python -m fathom.benchmarks run front $(BUNDLE)
	@$(BIN)/python -m fathom.benchmarks run routing ml-100k
	@$(MAKE) --no-print-directory results

results: setup
	@$(BIN)/python -m fathom.benchmarks.tables

loadtest: setup
	@$(BIN)/locust -f loadtests/locustfile.py --headless --only-summary --host $(TARGET) \
		--html build/loadtest/report.html --csv build/loadtest/run $(LOAD)

deploy-tools:
	@deploy/tools.sh

deploy-check: setup deploy-tools
	@$(BIN)/pytest -q tests/deploy tests/protos

image-check: setup deploy-tools
	@$(BIN)/fathom build ml-100k --out $(BUNDLE)
	@PATH="$(CURDIR)/build/tools/bin:$$PATH" $(BIN)/python -m fathom.benchmarks run image $(BUNDLE)

clean:
	rm -rf .venv build dist *.egg-info
