# make report   set up, run the default study, say where the page is and what to ship
# make ship     the same of a model of yours: MODEL=DIR
# make test     set up, check style and types, run every test but the opt-in ones
# make plan     what the run will cost before it starts, and how wrong that was
# make help     the rest

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
PROFILE ?= quick
BUDGET ?= params.yaml
A ?= HEAD
B ?= workspace
OUT ?= reports/compare.html
READY := $(VENV)/ready-$(shell cat requirements.txt requirements-uv.txt pyproject.toml | sha256sum | cut -c1-16)
# uv keeps its cache there.
CHECK_CACHE = cache="$${XDG_CACHE_HOME:-$$HOME/.cache}"; mkdir -p "$$cache" 2>/dev/null && test -w "$$cache" || { \
	echo "$$cache can't be written: export XDG_CACHE_HOME=<a folder that can be>" >&2; exit 2; }

.PHONY: help setup gguf report ship plan predict gate compare params test test-slurm check unit engines end-to-end lock clean

help:
	@echo "make report          set up, run params.yaml, write reports/index.html"
	@echo "make ship MODEL=DIR  what to ship of a fine-tuned model, tonight: docs/ship.md; TEXTS=FILE, TASKS=FILE, DATA=DIR, GPU=1"
	@echo "make plan            time, memory, disk, GPU hours of what is missing; CORES=8"
	@echo "make test            set up, style, types, unit tests, the end-to-end test"
	@echo "make test-slurm      as root on Debian: a SLURM cluster of one node, and a pipeline through it"
	@echo "make unit            unit tests only"
	@echo "make engines         llama.cpp and vLLM into .engines, and what they say and compute of every format"
	@echo "make end-to-end      the real Snakemake and DVC on the quick profile"
	@echo "make predict         predict the damage of variants that are not evaluated yet"
	@echo "make gate            is there a variant inside the budget? BUDGET=kl=0.1,flips=0.05 or a YAML file, VARIANT=name;"
	@echo "                     make ends with its own 2 whatever the answer: scripts and CI call hemorrhage gate (0 yes, 1 no)"
	@echo "make compare A=HEAD~1 B=workspace   two studies side by side in reports/compare.html, or in OUT"
	@echo "make params PROFILE=quick|full   write a profile into params.yaml (git diff shows what changed)"
	@echo "make gguf            the extra gguf: llama.cpp, to compare with"
	@echo "hemorrhage --help    the same and more as a command, after: . .venv/bin/activate"
	@echo "make lock            compile pyproject.toml into requirements.txt, and those of the engines"

setup: $(READY)

$(READY):
	@$(CHECK_CACHE)
	$(PYTHON) -c "import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 14)) and 'Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12 ...')"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --no-deps --require-hashes --compile-bytecode -r requirements.txt
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	test -d .dvc || $(VENV)/bin/dvc init --quiet
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m hemorrhage.tools.plots_page
	rm -f $(VENV)/ready-* && touch $@

# A wheel that brings llama.cpp built; nothing of the bench needs it but comparisons.
gguf: $(READY)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps cyllama==0.2.18

# Whether the page is this plan's decides; the last line is the gate's, which of several models or without a budget has none.
REPORT = snakemake $(1); status=$$?; \
	if python -m hemorrhage.cli plan | grep -q '^page *current$$'; then \
	    echo "open reports/index.html"; python -m hemorrhage.cli gate 2> /dev/null | tail -n 1; \
	elif test $$status -eq 0; then echo "there is no report of this params.yaml; run again" >&2; status=1; fi; \
	exit $$status

report: $(READY)
	@$(call REPORT)

ship: $(READY)
	@test -n "$(MODEL)" || { echo "make ship MODEL=DIR: name the folder of the model; docs/ship.md" >&2; exit 2; }
	@hemorrhage params ship $(if $(DATA),lm_eval --data "$(DATA)") --model "$(MODEL)" $(if $(TEXTS),--texts "$(TEXTS)") $(if $(TASKS),--tasks "$(TASKS)")
	@hemorrhage costs $(if $(GPU),--gpu)
	@$(call REPORT,$(if $(GPU),--profile profiles/gpu))

plan: $(READY)
	@hemorrhage costs $(if $(CORES),--cores $(CORES))

params: $(READY)
	hemorrhage params params/$(PROFILE).yaml

predict: $(READY)
	@hemorrhage predict

gate: $(READY)
	@hemorrhage gate "$(BUDGET)" --variant "$(VARIANT)"

compare: $(READY)
	@hemorrhage compare "$(A)" "$(B)" --out "$(OUT)"

test: check unit end-to-end

check: $(READY)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	pytest tests/pipeline/test_lint.py
	mypy

unit: $(READY)
	OMP_NUM_THREADS=1 pytest tests -n auto --dist loadfile --durations=30 --durations-min=3

engines: $(READY)
	$(VENV)/bin/python -m tests.engines.install
	pytest tests/engines -m engines

test-slurm: $(READY)
	command -v slurmctld munged > /dev/null || apt-get install --yes --no-install-recommends slurm-wlm munge
	pytest tests -m slurm

end-to-end: $(READY)
	pytest tests -m end_to_end -n 2 --dist loadfile --durations=20 --durations-min=10

# vLLM's wheels for CPUs are made for this platform, and its torch is in an index of PyTorch's own (UV_INDEX). Packages for
# images and sound are wheels for CUDA, which break the import of transformers beside torch for CPUs.
VLLM_LISTS = --python-platform x86_64-manylinux_2_28 $(addprefix --no-emit-package ,torchvision torchaudio torchcodec)

lock: $(READY)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --quiet --output-file requirements.txt
	echo "uv==0.13.9" | uv pip compile - --universal --generate-hashes --no-emit-index-url --no-header \
	    --no-annotate --quiet --output-file requirements-uv.txt
	cd src/hemorrhage/engines/requirements && for list in *.in; do \
	    case $$list in vllm-*) options="$(VLLM_LISTS)";; *) options=--universal;; esac; \
	    uv pip compile $$list $$options --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	        --no-annotate --quiet --output-file $${list%.in}.txt || exit 1; done

clean:
	rm -rf logs .snakemake data/*/
