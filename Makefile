# Two commands do everything on a fresh Debian or Ubuntu machine: `make demo` and `make test`.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
# What the tests' shell peers need: the original scripts are POSIX sh and zsh. Any whole PostgreSQL of Debian's will do.
POSTGRES := $(firstword $(wildcard /usr/lib/postgresql/*/bin/postgres) /usr/lib/postgresql/any/bin/postgres)
# The portable wrapper is linked with the distribution's own Python and SQLite, whose static libraries it publishes.
WRAPPER := build/wrap_application
LIBPYTHON := $(firstword $(wildcard /usr/lib/python3*/config-3*/libpython3*.a) /usr/lib/python3/libpython3.a)
LIBSQLITE3 := $(firstword $(wildcard /usr/lib/*/libsqlite3.a) /usr/lib/libsqlite3.a)
BUILD_WRAPPER := python3:/usr/bin/python3 gcc:/usr/bin/gcc libpython3-dev:$(LIBPYTHON) libsqlite3-dev:$(LIBSQLITE3)
DEBIAN := python3-venv:/usr/share/doc/python3-venv zsh:/usr/bin/zsh util-linux:/usr/bin/unshare fuse3:/usr/bin/fusermount3 \
	postgresql:$(POSTGRES) $(BUILD_WRAPPER) busybox-static:/usr/share/doc/busybox-static bubblewrap:/usr/bin/bwrap
# What the tests look at pages with.
BROWSER := chromium:/usr/bin/chromium
# What builds images and runs pods. runc, because crun refuses machines whose cgroups are of both versions.
PODS := podman:/usr/bin/podman buildah:/usr/bin/buildah runc:/usr/sbin/runc catatonit:/usr/bin/catatonit \
	netavark:/usr/lib/podman/netavark busybox-static:/usr/share/doc/busybox-static mmdebstrap:/usr/bin/mmdebstrap
# What the tests of the factory have besides: a registry on this machine.
FACTORY := buildah:/usr/bin/buildah runc:/usr/sbin/runc docker-registry:/usr/bin/docker-registry
IMAGES := build/containers/.built
WHEELS := build/wheels
# The Python of the images: that of their base, which is a Debian of this machine's release.
IMAGE_PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# What the portable wrapper has to pass as well; without the campaigns, and without what looks at no wrapper.
TESTS_OF_THE_WRAPPER := tests/test_init.py tests/test_directory.py tests/test_once_wrapped.py
OF_THE_WRAPPER := not (burst or handshakes or anywhere or any_bytes or users)
# The majors that the tests also meet, as others publish them.
SERVERS := 12.22.0-beta.15 14.23.0 17.11.0 18.6.0

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-pods check debian servers wrapper wheels images examples bench-coordination bench-data bench-mount bench-postgres bench-once bench-session bench-functions bench-factory clean

help:
	@echo 'make demo                 run the main job once, with real data, and look at what came of it'
	@echo 'make test                 lint, types and the whole test suite'
	@echo 'make test-long            the slow campaigns in full'
	@echo 'make test-pods            whole pods in real containers (needs root; part of make test)'
	@echo 'make images               the images, below build/containers, without a registry (needs root)'
	@echo 'make examples             the manifests of k8s-examples, anew'
	@echo 'make wrapper              $(WRAPPER), wrap_application for images without Python'
	@echo 'make bench-coordination   how fast containers hear each other, beside the peers'
	@echo 'make bench-data           how fast bundles are kept and fetched, beside the peers'
	@echo 'make bench-mount          how fast a mounted bundle is, beside a plain directory'
	@echo 'make bench-postgres       how fast databases come and go, beside the programs of PostgreSQL'
	@echo 'make bench-once           what it costs that a program runs at most once, beside a shell script with flock'
	@echo 'make bench-functions      what it costs to run code that was just handed over, beside bwrap and the interpreter'
	@echo 'make bench-factory        what it costs that an image is built by the factory, beside plain buildah (needs root)'
	@echo 'make bench-session        how long it takes to compose the pod of many artifacts'

# Debian's PostgreSQL makes a cluster and starts it, unless it is told not to before; where it is there already, it is left alone.
debian:
	@missing=; for entry in $(DEBIAN); do [ -e $${entry#*:} ] || missing="$$missing $${entry%%:*}"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		install() { DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends "$$@" >/dev/null; }; \
		$(SUDO) apt-get update -qq || exit; \
		case "$$missing" in *postgresql*) install postgresql-common && echo 'create_main_cluster = false' \
			| $(SUDO) tee -a /etc/postgresql-common/createcluster.conf >/dev/null || exit;; esac; \
		install $$missing; \
	fi

servers: $(VENV)/.test
	@$(BIN)/python tests/servers.py $(SERVERS)

$(BIN)/python:
	@$(MAKE) --no-print-directory debian
	@[ -n "$(PYTHON)" ] || { echo 'make: Python 3.11 or newer is needed: apt-get install python3' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Compiled ahead: where PYTHONDONTWRITEBYTECODE is set nothing else would, and each start would compile again.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@$(BIN)/python -m compileall -q sidecar
	@touch $@

# With a battery as others write them: a distribution of its own, which sidecar finds and does not know.
$(VENV)/.test: $(VENV)/.core batteries/function/pyproject.toml
	@$(MAKE) --no-print-directory debian DEBIAN='$(DEBIAN) $(BROWSER) $(FACTORY)'
	$(PIP) --editable '.[test]' --editable batteries/function
	@touch $@

$(VENV)/.demo: $(VENV)/.core
	$(PIP) --editable '.[demo]'
	@touch $@

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

demo: $(VENV)/.demo
	@$(BIN)/python -m compileall -q sidecar
	@sh demo/demo.sh

wrapper: $(WRAPPER)

$(WRAPPER): $(wildcard wrappers/portable/*.[cp]*) sidecar/cli/wrap_application.py \
		$(wildcard sidecar/*.py sidecar/coordination/*.py sidecar/once/*.py)
	@$(MAKE) --no-print-directory debian DEBIAN='$(BUILD_WRAPPER)'
	@CC=gcc /usr/bin/python3 -I wrappers/portable/build.py $@

wheels: $(WHEELS)/.made

# What the images' Python installs, without a network: for their version of it, not for the one that runs this.
$(WHEELS)/.others: pyproject.toml constraints.txt | $(VENV)/.core
	@rm -rf $(WHEELS) && mkdir -p $(WHEELS)
	$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir $(WHEELS) .
	$(BIN)/python -m pip --disable-pip-version-check --quiet download --dest $(WHEELS) --only-binary :all: \
		--python-version $(IMAGE_PYTHON) --constraint constraints.txt --find-links $(WHEELS) 'sidecar-toolkit[gcs,s3,postgres,server]'
	@touch $@

$(WHEELS)/.made: $(WHEELS)/.others $(shell find sidecar batteries -name '*.py' -o -name '*.md' -o -name pyproject.toml)
	@rm -f $(WHEELS)/sidecar_toolkit-* $(WHEELS)/sidecar_function_battery-*
	$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir $(WHEELS) . ./batteries/function
	@touch $@

# By the commands that its pages show.
examples: $(VENV)/.test
	@$(BIN)/python tests/examples.py

images: $(IMAGES)

$(IMAGES): $(WRAPPER) $(WHEELS)/.made images/build images/configure images/factory.yaml $(wildcard images/*/Containerfile) .dockerignore \
		$(wildcard images/demo-artifacts/*/*/*) wrappers/function_proxy $(shell find images/runtime-base images/runtimes -type f) \
		batteries/function/Containerfile
	@$(MAKE) --no-print-directory debian DEBIAN='$(PODS)'
	@images/build
	@touch $@

# With what a pod that fails has said in build/pods.
test-pods: $(VENV)/.test images
	@$(BIN)/python -m compileall -q sidecar
	$(BIN)/python -m pytest -n 3 --dist worksteal tests/pods

# Work is stolen: one that has nothing left takes half of what the slowest has, and tests of one module, which share clusters and
# servers, stay with one worker until then.
test: check servers wrapper
	@$(BIN)/python -m compileall -q sidecar
	$(BIN)/python -m pytest -n 4 --dist worksteal -m 'not long' --ignore=tests/pods
	SIDECAR_WRAP=$(CURDIR)/$(WRAPPER) $(BIN)/python -m pytest -n 4 --dist worksteal -m 'not long' -k '$(OF_THE_WRAPPER)' $(TESTS_OF_THE_WRAPPER)
	@$(MAKE) --no-print-directory test-pods

test-long: servers
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore=tests/pods
	@$(MAKE) --no-print-directory test-pods

# Compiled again, so that what was edited meanwhile is not compiled at each start that is measured.
bench-coordination: $(VENV)/.core wrapper
	@$(BIN)/python -m compileall -q sidecar
	@$(BIN)/python tests/bench/coordination.py

# The peers are installed here, and not by `make test`, which does not need them.
bench-data: $(VENV)/.test
	@$(MAKE) --no-print-directory debian DEBIAN='restic:/usr/bin/restic rclone:/usr/bin/rclone borgbackup:/usr/bin/borg postgresql:$(POSTGRES)'
	@$(BIN)/python -m compileall -q sidecar
	@$(BIN)/python tests/bench/data.py

bench-mount: $(VENV)/.core
	@$(MAKE) --no-print-directory debian
	@$(BIN)/python -m compileall -q sidecar
	@$(BIN)/python tests/bench/mount.py

bench-postgres: servers
	@$(BIN)/python -m compileall -q sidecar
	@$(BIN)/python tests/bench/postgres.py

bench-once: $(VENV)/.core
	@$(MAKE) --no-print-directory debian DEBIAN='util-linux:/usr/bin/flock'
	@$(BIN)/python -m compileall -q sidecar
	@$(BIN)/python tests/bench/once.py

bench-functions: $(VENV)/.test
	@$(BIN)/python -m compileall -q sidecar
	@$(BIN)/python tests/bench/functions.py

bench-factory: $(VENV)/.test
	@$(BIN)/python -m compileall -q sidecar
	@$(BIN)/python tests/bench/factory.py

bench-session: $(VENV)/.core
	@$(BIN)/python -m compileall -q sidecar
	@$(BIN)/python tests/bench/session.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist
