// The three products of a block of rows with a matrix, held in registers as far as they fit.
//
// R rows of N features stay in registers while the matrix, one line of N numbers for each j, passes
// by once. `line(j, d)` reads it: a weight (one number for all examples) or a vector of examples.
#pragma once
#include <utility>

#include "simd.h"

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

template <int R, int N, class V>
struct Rows {
    V at[R][N];

    Rows() = default;

    // From rows that are `stride` vectors apart.
    INLINE explicit Rows(const V* from, int stride) {
        repeat<R>([&](auto r) LAMBDA { repeat<N>([&](auto d) LAMBDA { at[r][d] = from[r * stride + d]; }); });
    }

    INLINE void clear() {
        repeat<R>([&](auto r) LAMBDA { repeat<N>([&](auto d) LAMBDA { at[r][d] = V{}; }); });
    }

    INLINE void store(V* to, int stride) const {
        repeat<R>([&](auto r) LAMBDA { repeat<N>([&](auto d) LAMBDA { to[r * stride + d] = at[r][d]; }); });
    }

    // made[r] += row r . line j
    template <class Line>
    INLINE void dot(int j, const Line& line, V* made) const {
        repeat<N>([&](auto d) LAMBDA {
            const auto factor = line(j, d);
            repeat<R>([&](auto r) LAMBDA { made[r] += at[r][d] * factor; });
        });
    }

    // row r += share[r] * line j
    template <class Line>
    INLINE void add(int j, const V* share, const Line& line) {
        repeat<N>([&](auto d) LAMBDA {
            const auto factor = line(j, d);
            repeat<R>([&](auto r) LAMBDA { at[r][d] += share[r] * factor; });
        });
    }

    // line += sum over rows of share[r] * row r: the gradient of the matrix
    INLINE void outer(const V* share, V* line) const {
        V kept[R];  // the stores to `line` could change `share`, for all the compiler knows
        repeat<R>([&](auto r) LAMBDA { kept[r] = share[r]; });
        repeat<N>([&](auto d) LAMBDA {
            V made = line[d];
            repeat<R>([&](auto r) LAMBDA { made += kept[r] * at[r][d]; });
            line[d] = made;
        });
    }
};
