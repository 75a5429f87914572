#!/usr/bin/env bash
# Compile the kernels and the choice of instruction set for aarch64, without linking or running:
# keeps that port building on machines of another kind. On Debian: apt install g++-aarch64-linux-gnu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../pronghorn/ops/cpu"

cxx=${CXX_AARCH64:-aarch64-linux-gnu-g++}
if ! command -v "$cxx" >/dev/null; then
    echo "check-aarch64: skipped, $cxx is not installed"
    exit 0
fi

flags=(-std=c++20 -O3 -fPIC -ffp-contract=off -Wall -Wextra -Werror -Wno-psabi)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

for source in *.cpp; do
    case $source in
        kernels*)
            "$cxx" "${flags[@]}" -march=armv8-a -DPH_ISA=baseline -c "$source" -o "$out/object"
            "$cxx" "${flags[@]}" -march=armv8.2-a+dotprod -DPH_ISA=dotprod -c "$source" -o "$out/object"
            ;;
        module.cpp) continue ;; # needs Python headers of that architecture
        *) "$cxx" "${flags[@]}" -march=armv8-a -c "$source" -o "$out/object" ;;
    esac
    echo "check-aarch64: $source"
done
