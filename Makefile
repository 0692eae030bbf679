# make train   from nothing to a trained detector on the built-in data: environment, data, training, validation, detection
# make test    the test suite; make test-fast skips the slow runs, make test-plain the speed tricks (utils/kernels.py)
# make test-long   matrices of formats and heads, programs of other people: hours; LONGTESTS=tests/exporting some of them
# make test-poor   the tests of numbers as on the oldest CPU, POORTESTS=tests all of them
# make lint   style, types, spelling and dead code, by pyproject.toml; make format puts what it can into shape
# make bench   all benchmarks, into benchmarks/RESULTS.md (half an hour with nothing else running); BENCH adds words
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
PIP = $(PY) -m pip install --quiet --disable-pip-version-check
RUN = runs/train/quickstart
# One test process per core, each with one thread: two that share the cores would only wait for each other. In the order
# of the files the long ones come in the middle; xdist would put those of few tests last, where they keep one core busy.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder
# One thread without AVX and FMA in every library: sums are rounded in another order, sorts place ties otherwise.
POOREST = ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem \
	NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL" OPENCV_CPU_DISABLE=AVX512-SKX,AVX2,FP16,AVX \
	GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-AVX512F
POORTESTS = $(addprefix tests/utils/test_,$(addsuffix .py,autoanchor boxes ema goldens loss metrics muon nms optim trajectory)) \
	tests/images/test_augment.py tests/images/test_letterbox.py tests/images/test_warp.py

.PHONY: train test test-fast test-long test-plain test-poor lint lint-style lint-types lint-spelling lint-dead-code format bench clean

train: $(VENV)/ready
	$(PY) train.py --cfg yolov5n.yaml --data data/shapes.yaml --imgsz 320 --epochs 24 --batch-size 16 --cos-lr \
		--optimizer AdamW --hyp data/quickstart/hyp.yaml --workers 1 --cache ram \
		--project runs/train --name quickstart --exist-ok
	$(PY) val.py --weights $(RUN)/weights/best.pt --data data/shapes.yaml --imgsz 320 \
		--project runs/val --name quickstart --exist-ok
	$(PY) detect.py --weights $(RUN)/weights/best.pt --source 'datasets/shapes/images/val/*0.*' --imgsz 320 \
		--project runs/detect --name quickstart --exist-ok
	@echo
	@echo "Look at:  $(RUN)/results.png  $(RUN)/val_batch0_pred.jpg  runs/detect/quickstart/"
	@echo "Next:     $(PY) train.py --data YOUR.yaml --cos-lr      (README.md: a first data set of your own)"

test: $(VENV)/ready-test
	$(PYTEST) --durations 15

test-fast: $(VENV)/ready-test
	$(PYTEST) -m "not slow and not long"

test-long: $(VENV)/ready-long
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m long --durations 15 $(LONGTESTS)

test-plain: $(VENV)/ready-test
	ANCHORAGE_PLAIN=1 $(PYTEST)

test-poor: $(VENV)/ready-test
	$(POOREST) $(PYTEST) $(POORTESTS)

lint: lint-style lint-types lint-spelling lint-dead-code

lint-style: $(VENV)/ready-test
	$(PY) -m ruff check --quiet
	$(PY) -m ruff format --quiet --check

lint-types: $(VENV)/ready-test
	$(PY) -m pyrefly check --python-interpreter-path $(PY) --output-format min-text

lint-spelling: $(VENV)/ready-test
	$(PY) -m codespell_lib

lint-dead-code: $(VENV)/ready-test
	$(PY) -m vulture

format: $(VENV)/ready-test
	$(PY) -m ruff check --quiet --fix-only
	$(PY) -m ruff format --quiet

bench: $(VENV)/ready
	$(PY) benchmarks/run_all.py $(BENCH)

$(VENV)/ready: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/ready-test: $(VENV)/ready tests/requirements.txt
	$(PIP) -r tests/requirements.txt
	touch $@

$(VENV)/ready-long: $(VENV)/ready-test tests/requirements-long.txt
	$(PIP) -r tests/requirements-long.txt
	touch $@

# Of datasets/ only what was drawn here: users keep their own data there.
clean:
	rm -rf $(VENV) datasets/shapes
