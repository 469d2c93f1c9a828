# Everything one does in a checkout. On a fresh Debian machine: `make demo`, `make test`.
export PATH := $(CURDIR)/.tools/bin:$(PATH):/usr/local/go/bin
RUN := uv run --no-sync

.PHONY: help setup demo test check format docs clean

help:  ## What there is
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup:  ## Install what is missing, and ready the checkout
	@deploy/setup.sh

demo: setup  ## The main job on a containerd of its own (DEMO="--pairs 3 --json out.json")
	$(RUN) expedited demo $(DEMO)

test: setup  ## The package's tests, on real containerd (TEST="-k gate"); .ci/run has the others as well
	$(RUN) pytest $(TEST)

# Programs that are no module of the package (ruff's list is in pyproject.toml); each is typed by itself, as three of
# them are called build
PROGRAMS := deploy/image/build deploy/kernel/build deploy/krew/build e2e/cluster/cluster e2e/node-image/build \
	e2e/suite e2e/timeline e2e/vm/kernel-tests e2e/vm/run

check: setup  ## ruff, mypy, import-linter
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	for program in $(PROGRAMS); do $(RUN) mypy --scripts-are-modules $$program || exit 1; done
	$(RUN) lint-imports

format: setup  ## Let ruff put the code in order
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

docs: setup  ## The documentation as a site: build/site
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet

clean:  ## Remove what was made here (the cache of built runtimes stays)
	rm -rf .venv .tools build dist plugin/expedited/pb .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# Kernels: deploy/kernel says what the series is for, e2e/vm how one boots without KVM.
.PHONY: kernel kernel-deb test-kernel test-kernel-all test-vm
VERSION ?= 7.3
ARCH ?= um
SERIES ?= patched

kernel:  ## A kernel for the tests; prints its path (VERSION=7.3|6.12 ARCH=um|x86_64 SERIES=patched|stock DEBUG=1)
	@deploy/kernel/build --version $(VERSION) --arch $(ARCH) --series $(SERIES) $(if $(DEBUG),--debug)

kernel-deb:  ## linux-image packages for nodes in build/kernel-deb, Debian's own configuration (MODULES=FILE: only those, as lsmod on a node prints them; 30 minutes in place of hours)
	@deploy/kernel/build --version $(VERSION) --arch x86_64 --series $(SERIES) --deb build/kernel-deb $(if $(MODULES),--modules $(MODULES))

test-kernel:  ## Kernel selftests on patched and stock, in a virtual machine (KERNEL_TESTS="--kills 1000 race")
	@e2e/vm/kernel-tests $(KERNEL_TESTS)

test-kernel-all:  ## The same on 6.12, on x86_64 by QEMU and with the debug configuration too: hours
	@e2e/vm/kernel-tests --all $(KERNEL_TESTS)

test-vm:  ## The virtual machine's own tests, then the teardown engine's, the observer's, the grace periods', OOM's, podman's and the page cache's in it on cgroup v2 and the patched kernel (SERIES=stock TEST="-k reap")
	@deploy/setup.sh podman conmon crun cpio e2fsprogs kmod qemu-system-x86
	@deploy/kernel/build --version $(VERSION) --series $(SERIES) >/dev/null
	$(RUN) pytest e2e/vm
	e2e/vm/run --kernel $(SERIES) --version $(VERSION) --memory 3G -- \
		$(RUN) pytest -p no:cacheprovider plugin/tests/teardown plugin/tests/agent/test_pod_cache.py $(addprefix plugin/tests/striker/test_,graces.py observer.py oom.py podman.py) $(TEST)

# A cluster by kind in a virtual machine: e2e/README.md
.PHONY: node-image cluster cluster-shell cluster-down e2e e2e-all
KERNEL ?= patched

node-image: setup  ## The node image for kind and the disk of the machine that runs it; prints its folder
	@$(RUN) python e2e/node-image/build

cluster: image  ## A Kubernetes cluster by kind in a virtual machine, the agent in it by the chart (KERNEL=patched|stock HELM="--set mode=observe")
	@$(RUN) python e2e/cluster/cluster --kernel $(KERNEL) up
	@$(RUN) python e2e/cluster/cluster --kernel $(KERNEL) run -- e2e/cluster/agent "$$(ls -t build/expedited-*.oci.tar | head -n 1)" $(HELM)

cluster-shell: setup  ## A prompt in that machine: kubectl, docker, kind
	@$(RUN) python e2e/cluster/cluster --kernel $(KERNEL) shell

cluster-down: setup  ## End it
	@$(RUN) python e2e/cluster/cluster --kernel $(KERNEL) down

e2e: image  ## The suite's short form: one cluster, delete, eviction, drain, restart, DaemonSet roll (E2E="--repeat 3 e2e/tests/test_use.py")
	$(RUN) python e2e/suite $(or $(E2E),--short)

e2e-all: image  ## The whole suite, on clusters with the patched and with the stock kernel side by side (E2E="--in-turn --repeat 3")
	$(RUN) python e2e/suite $(E2E)

# Deployment: docs/install.md and docs/security.md say what for.
.PHONY: image kubectl-plugin test-deploy

image: setup  ## The agent's image: build/expedited-VERSION.oci.tar and its bill of materials
	@deploy/tests/setup.sh
	@deploy/image/build

kubectl-plugin: setup  ## `kubectl expedited` for krew: build/kubectl-expedited-*.tar.gz and build/expedited.yaml (PLUGIN="--url URL": where they will lie)
	$(RUN) deploy/krew/build $(PLUGIN)

test-deploy: setup  ## Chart, manifests, kubectl plugin and image (TEST="-k chart"); the image is built twice, and run on a real containerd
	@deploy/tests/setup.sh
	$(RUN) pytest deploy/tests $(TEST)
