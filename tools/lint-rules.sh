#!/bin/bash
# tools/lint-rules.sh OBJECT...: the project's own rules.
#  1. Dependencies point one way (who may include what, below).
#  2. OBJECTs, the soft engine's code that runs with the guest's vector registers in the host's, call nothing
#     outside that engine and guest memory (see vmm/engine/soft/soft.h).
#  3. Nothing below a main() exits or aborts the process.
#  4. Files stay readable: a warning from 1000 lines on.
set -uo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
bad=0
[ $# -gt 0 ] || { echo "lint: no objects to check" >&2 && exit 2; }
complain() {
    echo "lint: $1"
    bad=1
}

# "these files" "must not include" "because"
rules=(
    "^common/|^(vmm|cli|agent|manager)/|common is below everything"
    "^vmm/(platform|irq|bus|memory|boot|virtio|emulated|backend|machine|state|control|jail)/|^vmm/engine/(soft|kvm|fake)/|only engine.h shows a CPU engine"
    "^vmm/(platform|irq|bus|memory|virtio|emulated|backend)/|^vmm/machine/|devices don't know the machine"
    "^vmm/engine/|^vmm/(platform|machine|boot|virtio|emulated|backend|irq|bus)/|an engine knows memory, and the rest as data"
    "^vmm/(memory|irq|bus)/|^vmm/(platform|boot|virtio|emulated)/|the board's wiring does not know devices"
    "^vmm/|^(cli|agent|manager)/|the VMM is below its users"
    "^cli/|^vmm/engine/(soft|kvm|fake)/|only engine.h shows a CPU engine"
)
while IFS=: read -r file line text; do
    included=$(sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"\([^"]*\)".*/\1/p' <<<"$text")
    for rule in "${rules[@]}"; do
        IFS='|' read -r _ _ why <<<"$(sed 's/(\([^)]*\))/()/g' <<<"$rule")"
        from=${rule%%"|^"*} rest=${rule#"$from|"}
        into=${rest%|"$why"}
        if [[ $file =~ $from && $included =~ $into ]]; then
            complain "$file:$line: includes \"$included\": $why"
        fi
    done
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' common vmm cli --include='*.[chS]' 2>/dev/null)

# Engines' private headers stay private among engines, too.
for engine in soft kvm fake; do
    while IFS=: read -r file line _; do
        [[ $file == vmm/engine/$engine/* ]] || complain "$file:$line: includes a private header of the $engine engine"
    done < <(grep -rn "^#include \"vmm/engine/$engine/" common vmm cli --include='*.[chS]' 2>/dev/null)
done

# What code with a live guest FPU may call: what is compiled like itself, entries of the rest of the engine
# (soft_*: those park the FPU first where they must), and the accessor of guest memory.
allowed='^(soft_.*|guest_memory_ptr|_GLOBAL_OFFSET_TABLE_|__tls_get_addr)$'
own=$("${NM:-nm}" --defined-only "$@" 2>/dev/null | awk 'NF == 3 { print $3 }' | sort -u)
calls=$("${NM:-nm}" -A --undefined-only "$@" | sed 's/:.* / /' | sort -k2,2 |
    join -1 2 -2 1 -v 1 - <(echo "$own") | awk -v allowed="$allowed" '$1 !~ allowed { print $2 ": calls " $1 }')
[ -z "$calls" ] || while read -r call; do
    complain "$call while the guest's vector registers are live"
done <<<"$calls"

while IFS=: read -r file line text; do
    complain "$file:$line: ends the process: ${text#"${text%%[![:space:]]*}"}"
done < <(grep -rnE '(^|[^_a-zA-Z0-9>.])(exit|abort|_exit|_Exit|quick_exit|assert)[[:space:]]*\(' common vmm cli --include='*.c' 2>/dev/null |
    grep -vE ':[0-9]+:[[:space:]]*(/?\*|//)|_Static_assert|static_assert' | grep -v '^cli/main\.c:')

while read -r lines file; do
    [ "$lines" -le 1000 ] || echo "lint: warning: $file has $lines lines; 1000 is where a file should be split"
done < <(find common vmm cli tests tools -name '*.[chS]' -exec wc -l {} + | grep -v ' total$')

exit $bad
