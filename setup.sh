#!/bin/sh
# Make a virtual environment with twingpt, both engines and the development tools: sh setup.sh [.venv]
set -eu
venv=${1:-.venv}

for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] || continue
    command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
    older="$candidate is $("$candidate" -V 2>&1)"
done
if [ -z "${python:-}" ]; then
    echo "twingpt needs Python 3.11 or newer; found ${older:-none}." >&2
    echo "macOS: brew install python@3.13   Debian, Ubuntu: apt install python3 python3-venv" >&2
    exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    echo "$python has no venv module. Debian, Ubuntu: apt install python3-venv" >&2
    exit 1
fi

# MLX on Linux needs a fast BLAS, and a C++ compiler for its compiled functions.
if [ "$(uname -s)" = Linux ]; then
    missing=""
    command -v g++ >/dev/null 2>&1 || missing="g++"
    ldconfig -p 2>/dev/null | grep -q 'libopenblas.so.0' || missing="$missing libopenblas0-pthread"
    if [ -n "$missing" ]; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
            apt-get update -qq
            # shellcheck disable=SC2086
            apt-get install -y -qq $missing
        else
            echo "note: MLX runs far slower, or not at all, without: $missing (sudo apt install $missing)" >&2
        fi
    fi
fi

"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip
"$venv/bin/python" -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev --group docs
echo "ready: $venv/bin/twingpt --help"
