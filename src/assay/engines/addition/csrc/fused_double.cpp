// The same kernel in double, for the checks.
#define NUMBER_IS_DOUBLE
#include "fused.cpp"
