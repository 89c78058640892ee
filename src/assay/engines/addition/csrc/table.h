// Keys, values, queries and residuals of every cell (position, token): all that the attention of
// any example can meet. One vector holds one feature of N cells of a position.
#pragma once
#include <vector>

#include "norm.h"

template <class T, int D, int H, int W>
struct Table {
    static constexpr int N = Simd<T>::N, INNER = H * W;
    typedef typename Simd<T>::V V;

    struct Row {  // of N cells
        V x[D], normed[D], key[INNER], value[INNER], query[INNER];
        Normed<V, D> norm;
        V raw_key[INNER], raw_query[INNER];  // before the norm of heads and the rotation
        V key_inverse[H], query_inverse[H];
    };

    const Problem& p;
    const Offsets& at;
    const Cells<N>& cells;
    std::vector<Row> rows;

    Table(const Problem& problem, const Offsets& offsets, const Cells<N>& places)
        : p(problem), at(offsets), cells(places), rows(places.start[problem.num_positions]) {}

    bool has_query(int t) const { return t >= p.num_positions - p.num_rows; }

    void forward(const T* w) {
        for (int t = 0; t < p.num_positions; t++) {
            const int count = count_cells(p.kind[t]);
            for (int v = cells.start[t]; v < cells.start[t + 1]; v++) {
                Row& row = rows[v];
                const int begin = (v - cells.start[t]) * N;
                for (int i = 0; i < N; i++) {
                    // Lanes beyond the last cell repeat it: finite, and never looked up.
                    const int cell = begin + i < count ? begin + i : count - 1;
                    const T* token = w + at.token + (p.first[t] + cell) * D;
                    for (int d = 0; d < D; d++) row.x[d][i] = token[d] + w[at.position + t * D + d];
                }
                norm_forward<T, D>(p.norm, T(p.eps), w + at.norm1, w + at.norm1 + D, row.x,
                                   row.normed, row.norm);
                project(w + at.value, w + at.value_bias, row.normed, row.value);
                project(w + at.key, w + at.key_bias, row.normed, row.raw_key);
                shape_head(w + at.head_norm + W, t, T(1), row.raw_key, row.key, row.key_inverse);
                if (!has_query(t)) continue;
                project(w + at.query, w + at.query_bias, row.normed, row.raw_query);
                shape_head(w + at.head_norm, t, T(p.scale * LOG2_E), row.raw_query, row.query,
                           row.query_inverse);  // so that scores are powers of two
            }
        }
    }

    // From gradients by cell ([key | value] and [query | x] rows of 16) to those of the weights.
    void backward(const T* w, T* g, const T* kv, const T* from_first_row) {
        const int first_row = p.num_positions - p.num_rows;
        const T* qx = from_first_row - size_t(cells.start[first_row]) * N * FEATURES;
        V d_norm_w[D] = {}, d_norm_b[D] = {}, d_head_w[2][W] = {};
        V d_query[(D + 1) * INNER] = {}, d_key[(D + 1) * INNER] = {}, d_value[(D + 1) * INNER] = {};
        for (int t = 0; t < p.num_positions; t++) {
            const int count = count_cells(p.kind[t]);
            for (int v = cells.start[t]; v < cells.start[t + 1]; v++) {
                Row& row = rows[v];
                V d_k[INNER], d_v[INNER], d_q[INNER], d_x[D], raw[INNER], d_normed[D] = {};
                read(kv + v * N * FEATURES, 0, INNER, d_k);
                read(kv + v * N * FEATURES, INNER, INNER, d_v);
                project_backward(w + at.value, row.normed, d_v, d_normed, d_value);
                // Gradients of scores arrive without the factor ln 2 that goes with powers of two.
                shape_head_backward(w + at.head_norm + W, t, T(LN_2), row.raw_key, row.key_inverse,
                                    d_k, raw, d_head_w[1]);
                project_backward(w + at.key, row.normed, raw, d_normed, d_key);
                if (has_query(t)) {
                    read(qx + v * N * FEATURES, 0, INNER, d_q);
                    shape_head_backward(w + at.head_norm, t, T(p.scale), row.raw_query,
                                        row.query_inverse, d_q, raw, d_head_w[0]);
                    project_backward(w + at.query, row.normed, raw, d_normed, d_query);
                }
                norm_backward<T, D>(p.norm, w + at.norm1, row.norm, d_normed, d_x, d_norm_w,
                                    d_norm_b);
                if (has_query(t)) {
                    V direct[D];
                    read(qx + v * N * FEATURES, INNER, D, direct);
                    for (int d = 0; d < D; d++) d_x[d] += direct[d];
                }
                const int begin = (v - cells.start[t]) * N;
                for (int i = 0; i < N && begin + i < count; i++)
                    for (int d = 0; d < D; d++) {
                        g[at.token + (p.first[t] + begin + i) * D + d] += d_x[d][i];
                        g[at.position + t * D + d] += d_x[d][i];
                    }
            }
        }
        for (int d = 0; d < D; d++) {
            g[at.norm1 + d] += sum(d_norm_w[d]);
            g[at.norm1 + D + d] += sum(d_norm_b[d]);
        }
        for (int i = 0; i < W; i++) {
            g[at.head_norm + i] += sum(d_head_w[0][i]);
            g[at.head_norm + W + i] += sum(d_head_w[1][i]);
        }
        for (int i = 0; i < (D + 1) * INNER; i++) {  // the bias follows its matrix in the row
            g[at.query + i] += sum(d_query[i]);
            g[at.key + i] += sum(d_key[i]);
            g[at.value + i] += sum(d_value[i]);
        }
    }

private:
    static void project(const T* w, const T* bias, const V* in, V* out) {
        for (int o = 0; o < INNER; o++) {
            V made = fill<V>(bias[o]);
            for (int d = 0; d < D; d++) made += in[d] * w[d * INNER + o];
            out[o] = made;
        }
    }

    static void project_backward(const T* w, const V* in, const V* d_out, V* d_in, V* d_w) {
        for (int o = 0; o < INNER; o++) {
            for (int d = 0; d < D; d++) {
                d_in[d] += d_out[o] * w[d * INNER + o];
                d_w[d * INNER + o] += d_out[o] * in[d];
            }
            d_w[D * INNER + o] += d_out[o];
        }
    }

    // Norm of each head, rotation by position, scale.
    void shape_head(const T* weight, int t, T scale, const V* raw, V* out, V* inverse) const {
        for (int h = 0; h < H; h++) {
            const V* x = raw + h * W;
            V* y = out + h * W;
            V factor = fill<V>(1);
            if (p.qk_norm) {
                V square = {};
                for (int i = 0; i < W; i++) square += x[i] * x[i];
                factor = inverse[h] = T(1) / vsqrt(square * (T(1) / W) + T(p.qk_eps));
            }
            for (int i = 0; i < W; i++) y[i] = x[i] * factor * scale * (p.qk_norm ? weight[i] : T(1));
            if (p.has_rope)
                for (int i = 0; i + 1 < W; i += 2) {
                    const T c = T(p.cosine[t][i / 2]), s = T(p.sine[t][i / 2]);
                    const V even = y[i], odd = y[i + 1];
                    y[i] = even * c - odd * s;
                    y[i + 1] = even * s + odd * c;
                }
        }
    }

    void shape_head_backward(const T* weight, int t, T scale, const V* raw, const V* inverse,
                             const V* d_out, V* d_raw, V* d_weight) const {
        for (int h = 0; h < H; h++) {
            const V* x = raw + h * W;
            V d[W];
            for (int i = 0; i < W; i++) d[i] = d_out[h * W + i];
            if (p.has_rope)
                for (int i = 0; i + 1 < W; i += 2) {
                    const T c = T(p.cosine[t][i / 2]), s = T(p.sine[t][i / 2]);
                    const V even = d[i], odd = d[i + 1];
                    d[i] = even * c + odd * s;
                    d[i + 1] = odd * c - even * s;
                }
            if (!p.qk_norm) {
                for (int i = 0; i < W; i++) d_raw[h * W + i] = d[i] * scale;
                continue;
            }
            V along = {};
            for (int i = 0; i < W; i++) {
                const V unit = x[i] * inverse[h];
                d_weight[i] += d[i] * unit * scale;
                d[i] *= scale * weight[i];
                along += d[i] * unit;
            }
            along *= T(1) / W;
            for (int i = 0; i < W; i++)
                d_raw[h * W + i] = (d[i] - x[i] * inverse[h] * along) * inverse[h];
        }
    }

    static void read(const T* rows, int first, int count, V* out) {
        for (int f = 0; f < count; f++)
            for (int i = 0; i < N; i++) out[f][i] = rows[i * FEATURES + first + f];
    }
};
