#!/usr/bin/env bash
# Refuse kernel objects that share code: an inline function or template instance compiled with
# AVX-512 may be the copy that the linker keeps for everybody (see kernels.cpp). Looks at the objects
# of every build under build/ except those with sanitizers, which add shared symbols of their own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v nm >/dev/null; then
    echo "check-kernels: skipped, nm is not installed"
    exit 0
fi

mapfile -t objects < <(find build -path '*/pronghorn_kernels_*.dir/*.o' -not -path 'build/sanitize/*')
if [ ${#objects[@]} -eq 0 ]; then
    echo "check-kernels: no kernel objects under build/; build first" >&2
    exit 1
fi

status=0
for object in "${objects[@]}"; do
    symbols=$(nm --demangle --defined-only "$object")
    if shared=$(grep -E '^[0-9a-f]* *[WwVvu] ' <<<"$symbols"); then
        printf 'check-kernels: %s has symbols that other objects may share:\n%s\n' "$object" "$shared" >&2
        status=1
    fi
done
[ $status -ne 0 ] || echo "check-kernels: ${#objects[@]} objects share nothing"
exit $status
