// Vectors of examples, and the functions of one number that the block needs.
//
// A vector holds one feature of N examples (or cells): all arithmetic is element by element, and
// GCC's vector extension maps it to whatever the machine has. float has functions of our own;
// double, which only checks use, calls the C library.
#pragma once
#include <cmath>
#include <cstdint>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
    static constexpr int N = 16;
    typedef float V __attribute__((vector_size(64)));
    typedef int32_t I __attribute__((vector_size(64)));
};

template <>
struct Simd<double> {
    static constexpr int N = 8;
    typedef double V __attribute__((vector_size(64)));
    typedef int64_t I __attribute__((vector_size(64)));
};

typedef Simd<float>::V vfloat;
typedef Simd<float>::I vint;
typedef Simd<double>::V vdouble;
typedef Simd<double>::I vlong;

#define INLINE inline __attribute__((always_inline))

template <class V>
INLINE V fill(double value) {
    V made = {};
    return made + static_cast<decltype(made[0] + made[0])>(value);
}

INLINE vfloat vsqrt(vfloat x) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_sqrt_ps((__m512)x);
#else
    for (int i = 0; i < 16; i++) x[i] = std::sqrt(x[i]);
    return x;
#endif
}

INLINE vdouble vsqrt(vdouble x) {
    for (int i = 0; i < 8; i++) x[i] = std::sqrt(x[i]);
    return x;
}

// exp(x) for x <= 0, and a little above. 2^r on [-1/2, 1/2] by a polynomial of degree 6, relative
// error 1e-7 in float (fit: tools/fit_polynomials.py). Below -87 the smallest normal number stands
// for what would be denormal. A NaN stays one: the comparison is false and the product keeps it.
INLINE vfloat vexp(vfloat x) {
    x = x < -87.0f ? fill<vfloat>(-87.0f) : x;
    const vfloat shift = fill<vfloat>(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const vfloat scaled = x * 1.44269504f;
    const vfloat shifted = scaled + shift;
    const vfloat whole = shifted - shift;
    vfloat r = x * 1.44269504f - whole;
    r = r + x * 1.92596299e-8f;  // the rest of log2(e)
    vfloat p = fill<vfloat>(0.000153458075f);
    p = p * r + 0.00133999312f;
    p = p * r + 0.00961848897f;
    p = p * r + 0.0555032878f;
    p = p * r + 0.240226469f;
    p = p * r + 0.693147206f;
    p = p * r + 1.0f;
    const vint exponent = (vint)shifted << 23;  // the low bits of `shifted` are the whole number
    const vint one = (vint)fill<vfloat>(1.0f);
    return p * (vfloat)(exponent + one);
}

INLINE vdouble vexp(vdouble x) {
    for (int i = 0; i < 8; i++) x[i] = std::exp(x[i]);
    return x;
}

// Phi(u), the normal distribution function, and its density. For x = |u|: 1 - Phi(x) =
// exp(-x^2/2) g(x), with g smooth on [0, 5.5] (polynomial of degree 10 in t = 2x/5.5 - 1, error of
// Phi 2e-7); beyond, g is held and the exponential decides.
INLINE void normal(vfloat u, vfloat& cumulative, vfloat& density) {
    const vfloat e = vexp(u * u * -0.5f);
    vfloat x = u < 0.0f ? -u : u;
    x = x > 5.5f ? fill<vfloat>(5.5f) : x;
    const vfloat t = x * (2.0f / 5.5f) - 1.0f;
    vfloat g = fill<vfloat>(0.0302876351f);
    g = g * t + 0.0491870349f;
    g = g * t + 0.0269364072f;
    g = g * t + -0.03790858f;
    g = g * t + -0.00733193257f;
    g = g * t + -0.0313780447f;
    g = g * t + 0.0463814833f;
    g = g * t + -0.0603039181f;
    g = g * t + 0.0840827484f;
    g = g * t + -0.10851675f;
    g = g * t + 0.130723272f;
    const vfloat tail = e * g;
    cumulative = u < 0.0f ? tail : 1.0f - tail;
    density = e * 0.398942280f;
}

INLINE void normal(vdouble u, vdouble& cumulative, vdouble& density) {
    for (int i = 0; i < 8; i++) {
        cumulative[i] = 0.5 * std::erfc(-u[i] * 0.70710678118654752440);
        density[i] = 0.39894228040143267794 * std::exp(-0.5 * u[i] * u[i]);
    }
}

template <class V>
INLINE V sigmoid(V x) {
    // exp of a number <= 0 only: 1 / (1 + e) or e / (1 + e).
    const V e = vexp(x < 0 ? x : -x);
    return (x < 0 ? e : fill<V>(1.0)) / (e + 1);
}

template <class V>
INLINE auto sum(V x) {
    constexpr int n = sizeof(V) / sizeof(x[0]);
    auto total = x[0] * 0;
    for (int i = 0; i < n; i++) total += x[i];
    return total;
}

// Look a feature up for every example: `table` holds it for up to N cells.
INLINE vfloat look_up(vfloat table, vint cell) { return __builtin_shuffle(table, cell); }
INLINE vdouble look_up(vdouble table, vlong cell) { return __builtin_shuffle(table, cell); }

// Add row i of the transposed 16 x 16 block to the 16 numbers at row[i].
INLINE void add_transposed(const vfloat* block, float* const* row) {
#if defined(__AVX512F__)
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = (__m512)block[i];
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        for (int k = 0; k < 2; k++) {
            const __m512d low = (__m512d)b[i + k], high = (__m512d)b[i + k + 2];
            a[i + 2 * k] = (__m512)_mm512_unpacklo_pd(low, high);
            a[i + 2 * k + 1] = (__m512)_mm512_unpackhi_pd(low, high);
        }
    }
    // Now a[4 g + j] holds, in 128-bit part p, features 4 g .. 4 g + 3 of example 4 p + j.
    for (int j = 0; j < 4; j++) {
        const __m512 even = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
        const __m512 odd = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
        const __m512 even2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
        const __m512 odd2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
        b[j] = _mm512_shuffle_f32x4(even, even2, 0x88);
        b[8 + j] = _mm512_shuffle_f32x4(even, even2, 0xdd);
        b[4 + j] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
        b[12 + j] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
    for (int i = 0; i < 16; i++)
        _mm512_storeu_ps(row[i], _mm512_add_ps(_mm512_loadu_ps(row[i]), b[i]));
#else
    for (int i = 0; i < 16; i++)
        for (int f = 0; f < 16; f++) row[i][f] += block[f][i];
#endif
}

INLINE void add_transposed(const vdouble* block, double* const* row) {
    for (int i = 0; i < 8; i++)
        for (int f = 0; f < 16; f++) row[i][f] += block[f][i];
}
