#!/usr/bin/env bash
# Build the extension for aarch64 and run its tests with an emulator, on a machine of another kind.
#
# On Debian: apt install g++-aarch64-linux-gnu qemu-user. Python and its libraries of that architecture come
# from the machine's own apt sources and from pip, and stay in build/aarch64: nothing is installed. Every
# instruction set is tested, as on any machine. Arguments go to pytest in place of the selection below; BIN is
# the folder of a Python with pip, cmake and ninja.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What an emulator gets through in five minutes. Of the others it cannot do all: a fork ends its threads.
selection=(
    tests/test_native_codes.py tests/test_native_equal.py tests/test_native_identical.py
    tests/test_native_long.py::test_many_blocks_equal_the_oracle
    -k 'not (test_native_identical and moe)' -q
)

skip() {
    echo "test-aarch64: skipped: $*"
    exit 0
}

[ "$(uname -m)" != aarch64 ] || skip "this is an aarch64 machine, whose tests are the ordinary ones"
cxx=${CXX_AARCH64:-aarch64-linux-gnu-g++}
for tool in "$cxx" qemu-aarch64 apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || skip "$tool is not installed"
done

bin=$(cd "${BIN:-.venv/bin}" && pwd)
here=$PWD/build/aarch64
root=$here/root site=$here/site python=$here/python
mkdir -p "$here"

# The packages: apt works out what they depend on, with lists and a status of its own.
if [ ! -e "$root/.done" ]; then
    rm -rf "$root" "$here/apt"
    mkdir -p "$root" "$here/apt/lists/partial" "$here/apt/archives/partial"
    : >"$here/apt/status"
    arm_apt() {
        apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$here/apt" \
            -o Dir::State::lists="$here/apt/lists" -o Dir::State::status="$here/apt/status" \
            -o Dir::Cache="$here/apt" -o Dir::Cache::archives="$here/apt/archives" \
            -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@" >"$here/apt/log" 2>&1
    }
    # A list that is missing need not be one of those that matter.
    arm_apt update || true
    arm_apt -y --download-only --no-install-recommends install python3-minimal libpython3-dev libstdc++6 ||
        skip "packages of that architecture cannot be had: $(tail -1 "$here/apt/log")"
    for package in "$here"/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    touch "$root/.done"
fi

# Its Python, for whoever runs $python: in subprocesses too, so it calls itself by that name.
exe=$(readlink -f "$root/usr/bin/python3")
cat >"$python" <<END
#!/bin/sh
PYTHONHOME='$root/usr' PYTHONPATH="$site:\$PYTHONPATH" exec qemu-aarch64 -L '$root' -0 '$python' '$exe' "\$@"
END
chmod +x "$python"

wheels=(numpy ml_dtypes array-api-compat nanobind pytest pytest-timeout pytest-xdist hypothesis)
if [ "$(cat "$site/.done" 2>/dev/null)" != "${wheels[*]}" ]; then
    rm -rf "$site"
    version=${exe##*/python}
    "$bin/python" -m pip --disable-pip-version-check install --quiet --no-compile --target "$site" \
        --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 --implementation cp \
        --python-version "$version" --only-binary=:all: "${wheels[@]}" >"$here/pip.log" 2>&1 ||
        skip "wheels of that architecture cannot be had: $(tail -1 "$here/pip.log")"
    echo "${wheels[*]}" >"$site/.done"
fi

"$bin/cmake" -G Ninja -S . -B "$here/build" -DCMAKE_MAKE_PROGRAM="$bin/ninja" -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER="$cxx" \
    -DCMAKE_CXX_FLAGS="-idirafter $root/usr/include -Werror" \
    -DPython_EXECUTABLE="$python" -DPython_INCLUDE_DIR="$root/usr/include/${exe##*/}"
"$bin/cmake" --build "$here/build" --target _native
cp --remove-destination "$here"/build/pronghorn/ops/cpu/_native*.so pronghorn/ops/cpu/

[ $# != 0 ] || set -- -n "${JOBS:-2}" "${selection[@]}"
OMP_NUM_THREADS=1 exec "$python" -m pytest "$@"
