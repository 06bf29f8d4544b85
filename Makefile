# make demo    the main job: a teacher, a student and the student with KD, on synthesised speech
# make demo-small  the same in a few minutes: every stage runs, the models learn nothing
# make test    the tests
# make across  two ESPnets (A and C) load each other's models, train students and decode
# make lint    black, isort and ruff
# make docs    the pages of docs/ as HTML, into docs/_build/html
# make bench   time and memory of the lattice losses, into benchmarks/RESULTS.md
# make env     only the environment
# make plain   `pip install .` without constraints, tested with the small demo
# make espnet-recipes  ESPnet's own recipes, for the drop-in tests (36 MB, into .cache)
# make clean   delete environments and what the demo made
#
# Each builds the environment that it needs, by default the newest for which a Python is
# found; ENV=C (Python 3.12 or 3.13), ENV=B (3.11) or ENV=A (3.10, k2) chooses one.

# Not from the shell's environment: on clusters ENV may be set to a start-up file.
ENV =
DEMO_SIZE ?= full
JOBS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?= --device cpu --sweep full

in_env = venv=$$(conf/build_env.sh $(ENV)) && export PATH="$$venv/bin:$$PATH" &&

# The MKL of torch before 2.0 uses half of an AMD processor unless told otherwise.
ifneq ($(shell grep -m1 AuthenticAMD /proc/cpuinfo 2>/dev/null),)
export MKL_DEBUG_CPU_TYPE ?= 5
endif

.PHONY: demo demo-small test across lint docs bench env plain espnet-recipes clean

demo:
	@$(in_env) cd egs/mini/asr1 && DEMO_SIZE=$(DEMO_SIZE) ./run.sh

demo-small:
	@$(MAKE) --no-print-directory demo DEMO_SIZE=small
	@echo "demo-small shows that every stage runs. Its models learn nothing: make demo"

# So that the report's path is shown relative to this folder.
demo demo-small plain: export STARTED_IN = $(CURDIR)

# One thread per worker: more would slow each other down on two cores. A file's tests stay
# together, so that models a file trains once are not trained by every worker.
test:
	@$(in_env) OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) --dist loadfile \
		--durations 10 $(PYTEST_ARGS)

across:
	@old=$$(conf/build_env.sh A) && new=$$(conf/build_env.sh C) && \
		"$$new/bin/python" tests/models/across_versions.py \
			"$$old/bin/python" "$$new/bin/python" && \
		tests/recipes/across_versions.sh

lint:
	@$(in_env) black --check . && isort --check . && ruff check .

docs:
	@$(in_env) sphinx-build -W --keep-going -b html docs docs/_build/html

bench:
	@$(in_env) OMP_NUM_THREADS=$(JOBS) python -m benchmarks.run $(BENCH_ARGS)

env:
	@$(in_env) python -m espnet_kd.bin.doctor

# PYTHON=python3.13 chooses another one. Installs the newest versions, not the tested ones.
PYTHON ?= python3.12
plain:
	rm -rf .venv-plain
	$(PYTHON) -m venv .venv-plain
	.venv-plain/bin/pip install -q ".[demo]"
	@export PATH="$(CURDIR)/.venv-plain/bin:$$PATH" PYTHONWARNINGS=default && \
		python -m espnet_kd.bin.doctor && cd egs/mini/asr1 && DEMO_SIZE=small ./run.sh

espnet-recipes:
	@$(in_env) python -m tests.recipes.espnet_recipes

clean:
	rm -rf .venv-A .venv-B .venv-C .venv-plain build dist docs/_build *.egg-info .cache .pytest_cache .ruff_cache
	rm -rf egs/mini/asr1/data egs/mini/asr1/dump egs/mini/asr1/exp
