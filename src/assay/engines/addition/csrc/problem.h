// What the caller gives: sizes, positions, and where each dense weight lies in a seed's flat row.
#pragma once
#include <cstdint>

constexpr int MAX_POSITIONS = 40;
constexpr int MAX_ROWS = 12;  // supervised; a multiple of ROWS
constexpr int MAX_VOCABULARY = 128;
constexpr int MAX_HIDDEN = 64;
constexpr int FEATURES = 16;  // numbers in an accumulator row of a cell: [key | value], [query | x]
constexpr int ROWS = 3;       // rows (or positions) of 8 features that fit in the registers
constexpr int TILE = 128;     // examples whose gradients are added up in one buffer

enum Kind { CONSTANT, DIGIT_A, DIGIT_B, DIGIT_SUM, PAIR };
enum Norm { NO_NORM, LAYER_NORM, RMS_NORM };

// Mirrored by the ctypes structure in fused.py.
struct Problem {
    int32_t vocabulary, num_positions, num_rows, end;
    int32_t width, heads, head_width, hidden;
    int32_t norm, qk_norm, gated, dense_size;
    double eps, qk_eps, scale;
    int32_t kind[MAX_POSITIONS], place[MAX_POSITIONS], first[MAX_POSITIONS];
    int32_t has_rope;
    double cosine[MAX_POSITIONS][4], sine[MAX_POSITIONS][4];
};

// Offsets into the dense row, in the order of Shape.dense() in block.py.
struct Offsets {
    int token, position, norm1, query, query_bias, key, key_bias, value, value_bias, head_norm;
    int out, out_bias, norm2, up, up_bias, gate, gate_bias, down, down_bias, norm_f, head, size;

    explicit Offsets(const Problem& p) {
        const int d = p.width, n = p.heads * p.head_width, f = p.hidden, g = p.gated ? f : 0;
        int at = 0;
        auto take = [&at](int& place, int count) { place = at, at += count; };
        take(token, p.vocabulary * d), take(position, p.num_positions * d), take(norm1, 2 * d);
        take(query, d * n), take(query_bias, n), take(key, d * n), take(key_bias, n);
        take(value, d * n), take(value_bias, n), take(head_norm, 2 * p.head_width);
        take(out, n * d), take(out_bias, d), take(norm2, 2 * d);
        take(up, d * f), take(up_bias, f), take(gate, d * g), take(gate_bias, g);
        take(down, f * d), take(down_bias, d), take(norm_f, 2 * d), take(head, p.vocabulary * d);
        size = at;
    }
};

inline int count_cells(int kind) { return kind == CONSTANT ? 1 : kind == PAIR ? 100 : 10; }

// Where the cells of each position lie, in vectors of N cells.
template <int N>
struct Cells {
    int start[MAX_POSITIONS + 1];  // first vector of a position

    explicit Cells(const Problem& p) {
        start[0] = 0;
        for (int t = 0; t < p.num_positions; t++)
            start[t + 1] = start[t] + (count_cells(p.kind[t]) + N - 1) / N;
    }
};
