// The DCT of one chunk, both ways, and the choice of its largest coefficients.
//
// An orthonormal DCT-II of even frequency sees x[p] + x[n-1-p], one of odd frequency the difference:
// two products of half the size. All of a chunk stays in the first cache, and every sum runs over the
// places in order: a chunk's result depends on nothing but the chunk.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>

#include "vector.h"

constexpr int MOST = 64, HALF = MOST / 2;  // the longest side of a chunk

INLINE int padded(int n) { return (n + FLOATS - 1) / FLOATS * FLOATS; }

// Vectors at any address, and the bits of numbers.
typedef float vloose __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t vbits __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t bits32 __attribute__((may_alias));

INLINE bool any(vint x) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)x, (__m512i)x);
#elif defined(__AVX__)
    return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#else
    int found = 0;
    for (int i = 0; i < FLOATS; i++) found |= x[i];
    return found;
#endif
}

// The transform of one size.
struct Side {
    alignas(64) float basis[MOST][MOST] = {};  // [frequency][place]
    // The same by [place][frequency], even and odd frequencies apart, for the first half of places.
    alignas(64) float across_even[HALF][HALF] = {}, across_odd[HALF][HALF] = {};
    int size = 0, even = 0, odd = 0;

    void make(int n) {
        size = n, even = (n + 1) / 2, odd = n / 2;
        for (int f = 0; f < n; f++) {
            auto& across = f % 2 ? across_odd : across_even;
            for (int p = 0; p < n; p++) {
                const double angle = 3.14159265358979323846 / n * f * (p + 0.5);
                basis[f][p] = float(std::cos(angle) * std::sqrt((f ? 2.0 : 1.0) / n));
                if (p < (f % 2 ? odd : even)) across[p][f / 2] = basis[f][p];
            }
        }
    }
};

inline const Side& side(int size) {
    static const struct All {
        Side of[MOST + 1];
        All() { for (int n = 1; n <= MOST; n++) of[n].make(n); }
    } all;
    return all.of[size];
}

// to[r] = sum over k of scale[r][k] * rows[k], for R rows of C vectors.
template <int R, int C>
INLINE void tile(const float* scale, int scale_row, const float* rows, int row, int depth, float* to,
                 int to_row) {
    vfloat sum[R][C];
    repeat<R>([&](auto r) LAMBDA { repeat<C>([&](auto c) LAMBDA { sum[r][c] = vfloat{}; }); });
    for (int k = 0; k < depth; k++) {
        vfloat line[C];
        repeat<C>([&](auto c) LAMBDA { line[c] = *(const vloose*)(rows + k * row + c * FLOATS); });
        repeat<R>([&](auto r) LAMBDA {
            const float factor = scale[r * scale_row + k];
            repeat<C>([&](auto c) LAMBDA { sum[r][c] += factor * line[c]; });
        });
    }
    repeat<R>([&](auto r) LAMBDA {
        repeat<C>([&](auto c) LAMBDA { *(vloose*)(to + r * to_row + c * FLOATS) = sum[r][c]; });
    });
}

constexpr int TILE_ROWS = VECTOR_BYTES == 64 ? 8 : 4;  // as many as there are registers for

template <int R, int C>
INLINE void rest(int count, const float* scale, int scale_row, const float* rows, int row, int depth,
                 float* to, int to_row) {
    if constexpr (R > 0) {
        if (count == R) tile<R, C>(scale, scale_row, rows, row, depth, to, to_row);
        else rest<R - 1, C>(count, scale, scale_row, rows, row, depth, to, to_row);
    }
}

template <int C>
void strip(int count, const float* scale, int scale_row, const float* rows, int row, int depth,
           float* to, int to_row) {
    for (; count >= TILE_ROWS; count -= TILE_ROWS) {
        tile<TILE_ROWS, C>(scale, scale_row, rows, row, depth, to, to_row);
        scale += TILE_ROWS * scale_row, to += TILE_ROWS * to_row;
    }
    rest<TILE_ROWS - 1, C>(count, scale, scale_row, rows, row, depth, to, to_row);
}

// The product [count, depth] x [depth, width]; reads and writes the width rounded up to vectors.
inline void product(int count, const float* scale, int scale_row, const float* rows, int row, int depth,
                    int width, float* to, int to_row) {
    int c = 0;
    for (; c + FLOATS < width; c += 2 * FLOATS)
        strip<2>(count, scale, scale_row, rows + c, row, depth, to + c, to_row);
    if (c < width) strip<1>(count, scale, scale_row, rows + c, row, depth, to + c, to_row);
}

// The sizes of a chunk [a, b] of which k coefficients are kept.
struct Chunk {
    const Side &down, &across;
    int a, b, k;
    Chunk(int a, int b, int k) : down(side(a)), across(side(b)), a(a), b(b), k(k) {}
    int places() const { return a * b; }
};

// What one thread needs to transform a chunk.
struct Workspace {
    alignas(64) float even[HALF][MOST] = {}, odd[HALF][MOST] = {};
    alignas(64) float lines[MOST][MOST] = {}, folded[2][MOST][HALF] = {};
    alignas(64) float coefficients[MOST][MOST] = {};  // even frequencies of a row, padded; then odd
    uint64_t key[MOST * MOST];
    int slot[MOST], senders[MOST * MOST] = {};
    float scale[2][HALF][HALF];
};

// x, in the workspace: `coefficients`.
inline void transform(const Chunk& chunk, const float* x, size_t row, Workspace& w) {
    const Side &down = chunk.down, &across = chunk.across;
    const int a = chunk.a, b = chunk.b;
    for (int p = 0; p < down.odd; p++) {
        const float *top = x + p * row, *bottom = x + (a - 1 - p) * row;
        for (int c = 0; c < b; c++) w.even[p][c] = top[c] + bottom[c], w.odd[p][c] = top[c] - bottom[c];
    }
    if (a % 2) std::memcpy(w.even[down.odd], x + down.odd * row, b * sizeof(float));
    product(down.even, down.basis[0], 2 * MOST, w.even[0], MOST, down.even, b, w.lines[0], 2 * MOST);
    product(down.odd, down.basis[1], 2 * MOST, w.odd[0], MOST, down.odd, b, w.lines[1], 2 * MOST);
    vint mirror;
    for (int i = 0; i < FLOATS; i++) mirror[i] = FLOATS - 1 - i;
    for (int i = 0; i < a; i++) {
        const float* line = w.lines[i];
        float *sum = w.folded[0][i], *difference = w.folded[1][i];
        int q = 0;
        for (; q + FLOATS <= across.odd; q += FLOATS) {
            const vfloat left = *(const vloose*)(line + q);
            const vfloat right = *(const vloose*)(line + b - q - FLOATS);
            const vfloat mirrored = __builtin_shuffle(right, mirror);
            *(vloose*)(sum + q) = left + mirrored, *(vloose*)(difference + q) = left - mirrored;
        }
        for (; q < across.odd; q++)
            sum[q] = line[q] + line[b - 1 - q], difference[q] = line[q] - line[b - 1 - q];
        if (b % 2) sum[across.odd] = line[across.odd];
    }
    product(a, w.folded[0][0], HALF, across.across_even[0], HALF, across.even, across.even,
            w.coefficients[0], MOST);
    product(a, w.folded[1][0], HALF, across.across_odd[0], HALF, across.odd, across.odd,
            w.coefficients[0] + padded(across.even), MOST);
}

// Place and value of the k largest of `coefficients`: by magnitude, of equal ones the smaller place
// first. A NaN is larger than any number.
inline void largest(const Chunk& chunk, Workspace& w, int64_t* idx, float* val) {
    const int odd_from = padded(chunk.across.even), width = odd_from + padded(chunk.across.odd);
    const auto column = [&](int j) { return j % 2 ? odd_from + j / 2 : j / 2; };
    vint top[MOST / FLOATS] = {};
    for (int i = 0; i < chunk.a; i++)
        for (int c = 0; c < width / FLOATS; c++) {
            const vint size = ((const vbits*)w.coefficients[i])[c] & INT32_MAX;
            top[c] = size > top[c] ? size : top[c];
        }
    // At least k coefficients are as large as the k-th largest of the columns' maxima.
    int32_t least = 0;
    if (chunk.k <= chunk.b) {
        int32_t tops[MOST];
        for (int j = 0; j < chunk.b; j++) tops[j] = ((const bits32*)top)[column(j)];
        std::nth_element(tops, tops + chunk.k - 1, tops + chunk.b, std::greater<int32_t>());
        least = tops[chunk.k - 1];
    }
    int count = 0;
    for (int i = 0; i < chunk.a; i++) {
        const bits32* bits = (const bits32*)w.coefficients[i];
        for (int c = 0; c < width; c += FLOATS) {
            if (!any((*(const vbits*)(bits + c) & INT32_MAX) >= least)) continue;
            for (int l = c; l < c + FLOATS; l++) {
                const int j = l < odd_from ? 2 * l : 2 * (l - odd_from) + 1;
                const int32_t size = bits[l] & INT32_MAX;
                if (j < chunk.b && size >= least)
                    w.key[count++] = uint64_t(size) << 32 | uint32_t(~(i * chunk.b + j));
            }
        }
    }
    std::partial_sort(w.key, w.key + chunk.k, w.key + count, std::greater<uint64_t>());
    for (int n = 0; n < chunk.k; n++) {
        const int place = int(~uint32_t(w.key[n]));
        idx[n] = place;
        val[n] = w.coefficients[place / chunk.b][column(place % chunk.b)];
    }
}

// The chunk of `count` coefficients, equal places added up: put(number in the chunk, value) in order.
// With `mean`, a coefficient is divided by how many name its place.
template <class Put>
void back(const Chunk& chunk, const int64_t* idx, const float* val, int count, bool mean, size_t row,
          float* to, Workspace& w, const Put& put) {
    const Side &down = chunk.down, &across = chunk.across;
    const int a = chunk.a, b = chunk.b;
    if (mean)
        for (int n = 0; n < count; n++) w.senders[idx[n]]++;
    // Lines of the transform in the order in which they are first named, even and odd apart.
    int lines[2] = {0, 0};
    for (int i = 0; i < a; i++) w.slot[i] = -1;
    for (int n = 0; n < count; n++) {
        const int i = int(idx[n]) / b, parity = i % 2;
        float(*into)[MOST] = parity ? w.odd : w.even;
        const float* basis = across.basis[int(idx[n]) % b];
        const float value = mean ? val[n] / w.senders[idx[n]] : val[n];
        if (w.slot[i] < 0) {
            const int s = w.slot[i] = lines[parity]++;
            for (int p = 0; p < (parity ? down.odd : down.even); p++)
                w.scale[parity][p][s] = down.basis[i][p];
            for (int c = 0; c < b; c++) into[s][c] = value * basis[c];
        } else {
            for (int c = 0; c < b; c++) into[w.slot[i]][c] += value * basis[c];
        }
    }
    if (mean)
        for (int n = 0; n < count; n++) w.senders[idx[n]] = 0;
    product(down.even, w.scale[0][0], HALF, w.even[0], MOST, lines[0], b, w.lines[0], MOST);
    product(down.odd, w.scale[1][0], HALF, w.odd[0], MOST, lines[1], b, w.coefficients[0], MOST);
    for (int p = 0; p < down.even; p++) {
        const bool middle = p == down.odd;
        const float *even = w.lines[p], *odd = w.coefficients[p];
        float *top = to + p * row, *bottom = to + (a - 1 - p) * row;
        for (int c = 0; c < b; c++) put(top[c], middle ? even[c] : even[c] + odd[c]);
        if (!middle)
            for (int c = 0; c < b; c++) put(bottom[c], even[c] - odd[c]);
    }
}
