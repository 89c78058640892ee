// Vectors of examples, and the functions of one number that the block needs.
//
// A vector holds one feature of N examples (or cells): all arithmetic is element by element, and
// GCC's vector extension maps it to whatever the machine has. float has functions of our own;
// double, which only checks use, calls the C library.
#pragma once
#include <cmath>

#include "vector.h"

template <class V>
INLINE V fill(double value) {
    V made = {};
    return made + static_cast<decltype(made[0] + made[0])>(value);
}

INLINE vfloat vsqrt(vfloat x) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_sqrt_ps((__m512)x);
#else
    for (int i = 0; i < FLOATS; i++) x[i] = std::sqrt(x[i]);
    return x;
#endif
}

INLINE vdouble vsqrt(vdouble x) {
    for (int i = 0; i < DOUBLES; i++) x[i] = std::sqrt(x[i]);
    return x;
}

// 2^x for x <= 0, and a little above; exactly 1 at 0. Polynomials fitted to the relative error by
// tools/fit_polynomials.py. A NaN stays one.
INLINE vfloat vexp2(vfloat x) {
#if defined(__AVX512DQ__)
    // Degree 5 in the fraction x - floor(x), error 1.4e-7; the scaling takes floor(x) by itself.
    const vfloat r = (vfloat)_mm512_reduce_ps((__m512)x, 1);
    vfloat p = fill<vfloat>(0.00186713011f);
    p = p * r + 0.00901703022f;
    p = p * r + 0.0557999132f;
    p = p * r + 0.24016445f;
    p = p * r + 0.693151312f;
    p = p * r + 1.0f;
    return (vfloat)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    // Degree 6 on [-1/2, 1/2], error 1e-7. Below -126 the smallest normal number stands for what
    // would be denormal.
    x = x < -126.0f ? fill<vfloat>(-126.0f) : x;
    const vfloat shift = fill<vfloat>(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const vfloat shifted = x + shift;
    const vfloat r = x - (shifted - shift);
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
#endif
}

INLINE vdouble vexp2(vdouble x) {
    for (int i = 0; i < DOUBLES; i++) x[i] = std::exp2(x[i]);
    return x;
}

constexpr double LOG2_E = 1.44269504088896340736, LN_2 = 0.69314718055994530942;

// GELU and its slope. Phi - 1/2 is odd, so it is tabulated on |u| in 32 steps, as a polynomial of
// degree 4 in the distance to the nearest step; Phi's own slope is that of the polynomial. Made when
// first used, by interpolation of the C library's erf: errors 1e-8 in Phi, 2e-6 in the slope.
struct PhiTable {
    static constexpr int STEPS = 32, DEGREE = 4;
    static constexpr double PER_UNIT = 30.5 / 5.6;  // the last step is held: Phi(5.6) = 1 - 1e-8
    alignas(64) float power[DEGREE + 1][STEPS];

    PhiTable() {
        for (int step = 0; step < STEPS; step++) {
            double node[DEGREE + 1], slope[DEGREE + 1], whole[DEGREE + 1] = {};
            for (int i = 0; i <= DEGREE; i++) {  // Chebyshev nodes on [-1/2, 1/2]
                node[i] = 0.5 * std::cos(3.14159265358979323846 * (i + 0.5) / (DEGREE + 1));
                slope[i] = 0.5 * std::erf((step + node[i]) / PER_UNIT * 0.70710678118654752440);
            }
            for (int k = 1; k <= DEGREE; k++)  // Newton's divided differences
                for (int i = DEGREE; i >= k; i--)
                    slope[i] = (slope[i] - slope[i - 1]) / (node[i] - node[i - k]);
            for (int k = DEGREE; k >= 0; k--) {  // and his form multiplied out
                for (int i = DEGREE; i > 0; i--) whole[i] = whole[i - 1] - node[k] * whole[i];
                whole[0] = slope[k] - node[k] * whole[0];
            }
            if (step == STEPS - 1) whole[0] = 0.5, whole[1] = whole[2] = whole[3] = whole[4] = 0;
            for (int i = 0; i <= DEGREE; i++) power[i][step] = static_cast<float>(whole[i]);
        }
    }
};

inline const PhiTable& phi_table() {
    static const PhiTable table;
    return table;
}

INLINE void gelu(const PhiTable& table, vfloat u, vfloat& value, vfloat& slope) {
    constexpr float LAST = PhiTable::STEPS - 1;
    const vfloat scaled = u * float(PhiTable::PER_UNIT);
    const vint sign = (vint)u & INT32_MIN;
    const vfloat shift = fill<vfloat>(12582912.0f);  // adding it rounds to the nearest step
    vfloat c[PhiTable::DEGREE + 1];
#if defined(__AVX512DQ__)
    const vfloat last = fill<vfloat>(LAST);
    const vfloat x = (vfloat)_mm512_range_ps((__m512)scaled, (__m512)last, 10);  // min |.|, positive
    const vint step = (vint)(x + shift);  // in its low bits
    const vfloat r = (vfloat)_mm512_reduce_ps((__m512)x, 0);
    for (int i = 0; i <= PhiTable::DEGREE; i++)
        c[i] = (vfloat)_mm512_permutex2var_ps(_mm512_load_ps(table.power[i]), (__m512i)step,
                                              _mm512_load_ps(table.power[i] + 16));
#else
    vfloat x = (vfloat)((vint)scaled & INT32_MAX);
    x = x > LAST ? fill<vfloat>(LAST) : x;
    const vint step = (vint)(x + shift);
    const vfloat r = x - ((vfloat)step - shift);
    for (int i = 0; i <= PhiTable::DEGREE; i++)
        for (int k = 0; k < FLOATS; k++) c[i][k] = table.power[i][step[k] & (PhiTable::STEPS - 1)];
#endif
    // Horner's scheme twice: the partial sums of the value are the coefficients of its slope.
    const vfloat b3 = c[4] * r + c[3], b2 = b3 * r + c[2], b1 = b2 * r + c[1], half = b1 * r + c[0];
    const vfloat steep = ((c[4] * r + b3) * r + b2) * r + b1;
    const vfloat phi = (vfloat)((vint)half ^ sign) + 0.5f;
    value = u * phi;
    slope = scaled * steep + phi;
}

INLINE void gelu(const PhiTable&, vdouble u, vdouble& value, vdouble& slope) {
    for (int i = 0; i < DOUBLES; i++) {
        const double phi = 0.5 * std::erfc(-u[i] * 0.70710678118654752440);
        value[i] = u[i] * phi;
        slope[i] = phi + u[i] * 0.39894228040143267794 * std::exp(-0.5 * u[i] * u[i]);
    }
}

template <class V>
INLINE V sigmoid(V x) {
    // exp of a number <= 0 only: 1 / (1 + e) or e / (1 + e).
    const V e = vexp2((x < 0 ? x : -x) * static_cast<decltype(x[0] + x[0])>(LOG2_E));
    return (x < 0 ? e : fill<V>(1.0)) / (e + 1);
}

INLINE float sum(vfloat x) {
#if defined(__AVX512F__)  // in halves: a tree, whose depth and not whose size costs time
    x += __builtin_shuffle(x, vint{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    x += __builtin_shuffle(x, vint{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    x += __builtin_shuffle(x, vint{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
    return x[0] + x[1];
#else
    float total = 0;
    for (int i = 0; i < FLOATS; i++) total += x[i];
    return total;
#endif
}

INLINE double sum(vdouble x) {
    double total = 0;
    for (int i = 0; i < DOUBLES; i++) total += x[i];
    return total;
}

// Look a feature up for every example: `table` holds it for up to N cells, two for up to 2 N.
template <class V, class I>
INLINE V look_up(V table, I cell) {
    return __builtin_shuffle(table, cell);
}
template <class V, class I>
INLINE V look_up(V table, V more, I cell) {
    return __builtin_shuffle(table, more, cell);
}

// Add 16 features of example i to the 16 numbers at row[i].
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
    for (int i = 0; i < FLOATS; i++)
        for (int f = 0; f < 16; f++) row[i][f] += block[f][i];
#endif
}

INLINE void add_transposed(const vdouble* block, double* const* row) {
    for (int i = 0; i < DOUBLES; i++)
        for (int f = 0; f < 16; f++) row[i][f] += block[f][i];
}
