// Who a library is; included once, in the file that has its C interface.
#pragma once
#include "vector.h"

extern "C" {

const char* assay_sources() { return SOURCES; }

// The vector units that this file was compiled for; empty if the machine lacks one of them. Made
// for any x86-64, as it runs before that is known.
#if defined(__x86_64__)
__attribute__((target("arch=x86-64")))
#endif
const char* assay_vector_units() {
#if defined(__AVX2__)
    bool here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#if defined(__AVX512F__)
    here = here && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
    return here ? "avx512" : "";
#else
    return here ? "avx2" : "";
#endif
#else
    return "baseline";
#endif
}

}
