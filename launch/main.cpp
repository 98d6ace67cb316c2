// The `lorashard` program. main() is the one place that turns an Error into a line on stderr and an exit code.
#include "dist/log.h"

int main() { return 2; }
