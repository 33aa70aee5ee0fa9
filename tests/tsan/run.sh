#!/bin/bash
# The unit tests of what several threads touch, built with ThreadSanitizer: a race that it sees is a failure.
set -uo pipefail
cd "$(dirname "$0")/../.."
build=${NACELLE_BUILD:-build}/tsan
tests=(test_event test_control test_hotplug test_machine test_machine_hotplug test_net test_block)
programs=("${tests[@]/#/$build/tests/unit/}")
if ! MAKEFLAGS="" nice make -s -j"$(nproc)" SAN=thread BUILD="$build" "${programs[@]}" 2>&1; then
    echo "FAIL tsan/build"
    exit 1
fi
# gcc's ThreadSanitizer wants its addresses where kernels with much randomness don't put them; containers may forbid to switch it off.
calm=()
! setarch -R true 2>/dev/null || calm=(setarch -R)
failed=0
for i in "${!tests[@]}"; do
    log=$build/${tests[i]}.log started=$SECONDS
    timeout -k 5 300 "${calm[@]}" "${programs[i]}" >"$log" 2>&1
    status=$?
    if [ $status = 0 ] && ! grep -q 'WARNING: ThreadSanitizer' "$log"; then
        echo "PASS tsan/${tests[i]} ($((SECONDS - started)) s)"
    elif grep -q 'FATAL: ThreadSanitizer: unexpected memory mapping' "$log"; then
        echo "SKIP tsan/${tests[i]}: ThreadSanitizer does not run with this kernel's addresses"
    else
        echo "FAIL tsan/${tests[i]} (exit status $status)"
        grep -A 30 'WARNING: ThreadSanitizer\|  ERROR\|   LINE' "$log" | head -60 | sed 's/^/    | /'
        failed=1
    fi
done
exit $failed
