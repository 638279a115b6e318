# `make demo`, `make test`, and `make test-long` for what is long by nature; `make model` trains the
# model that comes with the package, `make scenes` models of longer clips, `make rivals` compares six
# rivals with the demo's student; `make fuzz`, `make survive` and `make soak` are campaigns
# (docs/reliability.md). Each sets up its own virtual environment first.

PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs/demo
RUN := $(VENV)/bin/python
DEMO := $(RUNS)/report/report.html
MODEL ?= runs/soundscapes
SCENES ?= runs/scenes
RIVALS ?= runs/rivals

.PHONY: demo model scenes ablations rivals test test-long suite fuzz survive soak lint setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[test]'
	@touch $@

# One malloc arena of huge pages that keeps its memory: XLA on CPU frees its buffers after every step
# and would fault them in again, page by page. Not for the tests, which mostly compile, in threads
# that would wait for that one arena.
demo ablations rivals model scenes: export GLIBC_TUNABLES := glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=10000000000:glibc.malloc.hugetlb=1
# Sounds of the model that comes with the package, then a small one trained from nothing.
demo: setup
	$(RUN) generate.py --prompts=configs/demo_prompts.txt --out=sounds --page
	@echo "Open sounds/index.html"
	$(RUN) -m data.soundscapes --out $(RUNS)/data --workers 2
	$(RUN) -m data.spectrogram_codec --data $(RUNS)/data --out $(RUNS)/codec --overlap_frames 6
	$(RUN) -m data.encode_latents --data $(RUNS)/data --out $(RUNS)/encoded --codec $(RUNS)/codec
	$(RUN) -m data.embed_text --data $(RUNS)/encoded
	$(RUN) train.py --config=configs/demo_teacher.py --workdir=$(RUNS)/teacher --config.data.path=$(RUNS)/encoded
	$(RUN) train.py --config=configs/demo_student.py --workdir=$(RUNS)/student --config.data.path=$(RUNS)/encoded --config.init_from=$(RUNS)/teacher
	$(RUN) train.py --config=configs/demo_guided.py --workdir=$(RUNS)/guided --config.data.path=$(RUNS)/encoded --config.init_from=$(RUNS)/student
	$(RUN) generate.py --workdir=$(RUNS)/teacher --prompts=configs/demo_prompts.txt --out=$(RUNS)/sounds/teacher --overwrite
	$(RUN) generate.py --workdir=$(RUNS)/student --prompts=configs/demo_prompts.txt --out=$(RUNS)/sounds/student --overwrite
	$(RUN) generate.py --workdir=$(RUNS)/guided --prompts=configs/demo_prompts.txt --out=$(RUNS)/sounds/guided --overwrite
	$(RUN) eval.py --run=teacher=$(RUNS)/teacher --run=student=$(RUNS)/student --run=guided=$(RUNS)/guided --audio_data=$(RUNS)/data --encoded_data=$(RUNS)/encoded --out=$(RUNS)/report --tagger_steps=400 --num_energy_clips=64 --gates=demo
	@echo "Open $(DEMO)"

# Goes on where it stopped. The model in the package is $(MODEL)/exported of the commit on its card.
model: setup
	$(RUN) -m data.soundscapes --out $(MODEL)/data --num_train 20000 --workers 2
	$(RUN) -m data.spectrogram_codec --data $(MODEL)/data --out $(MODEL)/codec --overlap_frames 6
	$(RUN) -m data.encode_latents --data $(MODEL)/data --out $(MODEL)/encoded --codec $(MODEL)/codec
	$(RUN) -m data.embed_text --data $(MODEL)/encoded
	$(RUN) train.py --config=configs/soundscapes_teacher.py --workdir=$(MODEL)/captions --config.data.path=$(MODEL)/encoded
	$(RUN) train.py --config=configs/soundscapes_teacher.py:context --workdir=$(MODEL)/context --config.data.path=$(MODEL)/encoded --config.init_from=$(MODEL)/captions
	$(RUN) train.py --config=configs/soundscapes_teacher.py:forward --workdir=$(MODEL)/teacher --config.data.path=$(MODEL)/encoded --config.init_from=$(MODEL)/context
	$(RUN) train.py --config=configs/soundscapes_student.py --workdir=$(MODEL)/student --config.data.path=$(MODEL)/encoded --config.init_from=$(MODEL)/teacher
	$(RUN) eval.py --run=teacher=$(MODEL)/teacher --run=student=$(MODEL)/student --audio_data=$(MODEL)/data --encoded_data=$(MODEL)/encoded --out=$(MODEL)/report
	$(RUN) -m benchmarks.structure --run=teacher=$(MODEL)/teacher --run=student=$(MODEL)/student --audio_data=$(MODEL)/data --encoded_data=$(MODEL)/encoded --out=$(MODEL)/structure
	$(RUN) -m fasttta_jax.tools.export $(MODEL)/student $(MODEL)/exported --dtype=float16 --metrics=$(MODEL)/report/metrics.json --title=Soundscapes --licence=apache-2.0 --notes=configs/soundscapes_card.md

# Clips of 10.24 s in 128 tokens, on which the number of iterations tells. Goes on where it stopped.
scenes: setup
	$(RUN) -m data.soundscapes --out $(SCENES)/data --num_train 8000 --num_validation 200 --clip_seconds 10.24 --max_events 4 --workers 2
	$(RUN) -m data.spectrogram_codec --data $(SCENES)/data --out $(SCENES)/codec --overlap_frames 6
	$(RUN) -m data.encode_latents --data $(SCENES)/data --out $(SCENES)/encoded --codec $(SCENES)/codec
	$(RUN) -m data.embed_text --data $(SCENES)/encoded
	$(RUN) train.py --config=configs/scenes_teacher.py --workdir=$(SCENES)/teacher --config.data.path=$(SCENES)/encoded
	$(RUN) train.py --config=configs/scenes_student.py --workdir=$(SCENES)/student --config.data.path=$(SCENES)/encoded --config.init_from=$(SCENES)/teacher
	$(RUN) train.py --config=configs/scenes_guided.py --workdir=$(SCENES)/guided --config.data.path=$(SCENES)/encoded --config.init_from=$(SCENES)/student
	$(RUN) train.py --config=configs/scenes_guided.py:shallow --workdir=$(SCENES)/shallow --config.data.path=$(SCENES)/encoded --config.init_from=$(SCENES)/student

ablations: demo
	$(RUN) -m benchmarks.sweep --teacher=$(RUNS)/teacher --audio_data=$(RUNS)/data --encoded_data=$(RUNS)/encoded --out=$(RUNS)/ablations
	@echo "Open $(RUNS)/ablations/sweep.md"

# The demo's data, codec, teacher and student, then its rivals (docs/rivals.md).
# Goes on where it stopped.
rivals: setup
	$(RUN) -m data.soundscapes --out $(RUNS)/data --workers 2
	$(RUN) -m data.spectrogram_codec --data $(RUNS)/data --out $(RUNS)/codec --overlap_frames 6
	$(RUN) -m data.encode_latents --data $(RUNS)/data --out $(RUNS)/encoded --codec $(RUNS)/codec
	$(RUN) -m data.embed_text --data $(RUNS)/encoded
	$(RUN) train.py --config=configs/demo_teacher.py --workdir=$(RUNS)/teacher --config.data.path=$(RUNS)/encoded
	$(RUN) train.py --config=configs/demo_student.py --workdir=$(RUNS)/student --config.data.path=$(RUNS)/encoded --config.init_from=$(RUNS)/teacher
	$(RUN) -m benchmarks.rivals --teacher=$(RUNS)/teacher --student=$(RUNS)/student --audio_data=$(RUNS)/data --encoded_data=$(RUNS)/encoded --out=$(RIVALS)
	@echo "Open $(RIVALS)/rivals.md"

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(RUN)

# Lint and types beside the suite: one of them failing fails both.
test: setup
	$(MAKE) --no-print-directory --jobs=2 lint suite

# Three workers for two cores: tests of several processes wait much.
PYTEST := $(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

suite: setup
	$(PYTEST) -m 'not long'

test-long: setup
	$(PYTEST) -m long

# Rubbish inputs, each of which must end with the right result or one clear error. Goes on where it
# stopped.
fuzz: setup
	$(RUN) -m tests.campaigns.fuzz --count=10000 --seed=0 --out=runs/fuzz

# Goes on where it stopped; as root, with a disk that is really full.
survive: setup
	$(RUN) -m tests.campaigns.survive --kills=1000 --seed=0 --out=runs/survive

soak: setup
	$(RUN) -m tests.campaigns.soak --minutes=30 --seed=0 --out=runs/soak

clean:
	rm -rf $(VENV) runs sounds build *.egg-info
