#!/bin/bash
# What a 4 KiB request costs by each way, from the VMM's counters: emulated hardware takes more exits than virtio does.
cd "$(dirname "$0")/../.." || exit 1
exec timeout -k 5 900 bench/io_paths.sh --check --count 320
