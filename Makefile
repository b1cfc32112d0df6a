# The two commands of the README, and what contributors need. Each sets up its own environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export PIP_CONSTRAINT = $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test proofs spark check format docs figures sanitize wheel fuzz mutate bench clean

demo: $(VENV)/.demo  ## install, then distil a teacher into a small student on real data
	@echo "Distilling on scikit-learn's digits: about a minute on two cores. The run folder it names holds report.html."
	$(BIN)/kullback distill

test: $(VENV)/.test  ## install with the test tools, then run the suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

proofs: $(VENV)/.test  ## what takes long: large samples, every pair, killed and resumed runs, whole commands
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

spark: $(VENV)/.spark  ## add PySpark (500 MB), which the tests of Spark need beside Java 17

check: $(VENV)/.test  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror csrc/*.hpp csrc/*.cpp
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i csrc/*.hpp csrc/*.cpp

docs: $(VENV)/.test  ## the site, in build/site: open index.html there
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W -n --keep-going -q -b html -d build/doctrees docs build/site

figures: $(VENV)/.test  ## regenerate every figure and table that documents quote
	$(BIN)/python docs/learn/figures.py
	$(BIN)/python bench/accuracy.py
	$(BIN)/python docs/check.py
	$(BIN)/python bench/coding.py

sanitize: $(VENV)/.test  ## the extension's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf build/sanitize && $(PYTHON) -m venv build/sanitize/venv
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
		$$(build/sanitize/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/tools.pth
	build/sanitize/venv/bin/python -m pip install -q --no-deps -Ccmake.define.KULLBACK_SANITIZE=ON \
		-Cbuild-dir=build/sanitize/objects .
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 KULLBACK_SANITIZED=1 \
		build/sanitize/venv/bin/python -m pytest -q tests/engines --ignore tests/engines/triton \
		-p no:cacheprovider -m "not slow" -k "not eager and not memory and not fork and not compile and not opcheck and not transforms and not two_ranks and not explain_predicts"

wheel:  ## sdist and wheel in dist; the wheel is tested in an empty environment without a compiler
	PYTHON=$(PYTHON) .ci/wheel

fuzz: $(VENV)/.test  ## a minute of random calls of the C++ engine against core; SECONDS=600 for longer
	$(BIN)/python tests/engines/test_fuzz.py --seconds $(or $(SECONDS),60)

mutate: $(VENV)/.test  ## change operators and numbers of the numeric code, and see whether a test notices: docs/mutations.md
	$(BIN)/python -m pip install -q -e '.[mutate]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutate.py --fresh $(MUTATE)

bench: $(VENV)/.test  ## time the engines side by side; writes docs/performance
	$(BIN)/python bench/engines.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

BUILT_FROM = $(BIN)/python pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)

$(VENV)/.demo: $(BUILT_FROM)
	@echo "Installing kullback and its extra 'distill' into $(VENV): PyTorch is large, and the C++ engine is compiled."
	@echo "The first time takes 1 to 4 minutes; the next line comes when it is done."
	$(BIN)/python -m pip install -q -e '.[distill]'
	@echo "Installed. The command is $(BIN)/kullback; \"$(BIN)/kullback --help\" says what it can do."
	@touch $@

$(VENV)/.test: $(BUILT_FROM)
	@echo "Installing kullback with all extras and the test tools into $(VENV); the first time takes some minutes."
	$(BIN)/python -m pip install -q -e '.[code,data,distill,lm,recipes,transport,triton,test,check,docs]'
	@touch $@

$(VENV)/.spark: $(VENV)/.test
	@echo "Installing PySpark, the rest of the extra 'spark', into $(VENV)."
	$(BIN)/python -m pip install -q pyspark
	@touch $@
