// The three products of a block of rows with a matrix, held in registers as far as they fit.
//
// R rows of N features stay in registers while the matrix, one line of N numbers for each j, passes
// by once. `line(j, d)` reads it: a weight (one number for all examples) or a vector of examples.
#pragma once
#include "simd.h"

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
