// Vector types of the machine that the engines' kernels are compiled for, and loops of constant length.
#pragma once
#include <cstdint>
#include <utility>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
    static constexpr int N = VECTOR_BYTES / 4;
    typedef float V __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t I __attribute__((vector_size(VECTOR_BYTES)));
};

template <>
struct Simd<double> {
    static constexpr int N = VECTOR_BYTES / 8;
    typedef double V __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t I __attribute__((vector_size(VECTOR_BYTES)));
};

constexpr int FLOATS = Simd<float>::N, DOUBLES = Simd<double>::N;
typedef Simd<float>::V vfloat;
typedef Simd<float>::I vint;
typedef Simd<double>::V vdouble;
typedef Simd<double>::I vlong;

#define INLINE inline __attribute__((always_inline))

#define LAMBDA __attribute__((always_inline))

// Calls step with 0 .. COUNT - 1 as constants. A loop would be unrolled too late for the arrays
// that it indexes to become registers.
template <class Step, int... I>
INLINE void unroll(std::integer_sequence<int, I...>, const Step& step) {
    (step(std::integral_constant<int, I>()), ...);
}

template <int COUNT, class Step>
INLINE void repeat(const Step& step) {
    unroll(std::make_integer_sequence<int, COUNT>(), step);
}
