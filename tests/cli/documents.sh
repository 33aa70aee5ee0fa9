#!/bin/bash
# What documents, --help and manual pages name is there, and what there is they name.
cd "$(dirname "$0")/../.." || exit 1
PYTHONDONTWRITEBYTECODE=1 exec python3 tests/cli/documents.py "${NACELLE:-build/nacelle}"
