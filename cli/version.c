#include "cli/cli.h"

const char cli_version[] = "0.1.0";
