// The block for N examples at once, one in each lane: forward, loss and backward of ROWS supervised
// rows at a time, so that a weight or a key is read once for several rows and their activations
// stay in the first-level cache.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "table.h"

template <class T, int D, int H, int W>
struct Group {
    static constexpr int N = Simd<T>::N, INNER = H * W;
    typedef typename Simd<T>::V V;
    typedef typename Simd<T>::I I;
    typedef Table<T, D, H, W> Tables;

    // Gradients of a tile: by cell, and lane by lane for the weights of the rows.
    struct Gradients {
        V out[INNER * D], out_bias[D], norm2[2 * D], up[D * MAX_HIDDEN], up_bias[MAX_HIDDEN];
        V gate[D * MAX_HIDDEN], gate_bias[MAX_HIDDEN], down[MAX_HIDDEN * D], down_bias[D];
        V norm_f[2 * D], head[MAX_VOCABULARY * D];
        T *kv, *qx;  // [cells][FEATURES]

        Gradients() {}  // leaves the numbers alone: only what is used is cleared

        void clear(int hidden, int vocabulary) {
            auto zero = [](V* from, int count) { std::memset(from, 0, count * sizeof(V)); };
            zero(out, INNER * D), zero(out_bias, D), zero(norm2, 2 * D), zero(norm_f, 2 * D);
            zero(up, hidden * D), zero(up_bias, hidden), zero(gate, hidden * D);
            zero(gate_bias, hidden), zero(down, hidden * D), zero(down_bias, D);
            zero(head, vocabulary * D);
        }
    };

    const Problem& p;
    const Offsets& at;
    const Cells<N>& cells;
    const T* w;
    const Tables& table;
    const int hidden, vocabulary, first_row;

    I cell[MAX_POSITIONS];                      // of each example, within its position
    I target[MAX_POSITIONS];                    // tokens that the supervised rows must predict
    V is_real;                                  // 1 for an example, 0 for filling
    V key[MAX_POSITIONS][INNER], value[MAX_POSITIONS][INNER];
    V d_key[MAX_POSITIONS][FEATURES];           // [key | value]
    V d_query[ROWS][FEATURES];                  // [query | x]
    V weight[H][MAX_POSITIONS][ROWS];           // of attention; then gradients of scores
    V prob[H][MAX_POSITIONS][ROWS];
    V query[ROWS][INNER], x[ROWS][D], mixed[ROWS][INNER], inverse[ROWS][H];
    V y[ROWS][D], h[ROWS][D], z[ROWS][D], hf[ROWS][D];
    V active[MAX_HIDDEN][ROWS], slope[MAX_HIDDEN][ROWS], slope_gate[MAX_HIDDEN][ROWS];
    V logit[MAX_VOCABULARY][ROWS];
    Normed<V, D> norm2[ROWS], norm_f[ROWS];
    V loss_product, loss_sum;
    T up_t[MAX_HIDDEN * D], gate_t[MAX_HIDDEN * D];  // transposed, for reading along rows

    Group(const Problem& problem, const Offsets& offsets, const Cells<N>& places, const T* weights,
          const Tables& tables)
        : p(problem), at(offsets), cells(places), w(weights), table(tables), hidden(problem.hidden),
          vocabulary(problem.vocabulary), first_row(problem.num_positions - problem.num_rows) {
        for (int f = 0; f < hidden; f++)
            for (int d = 0; d < D; d++) {
                up_t[f * D + d] = w[at.up + d * hidden + f];
                if (p.gated) gate_t[f * D + d] = w[at.gate + d * hidden + f];
            }
    }

    // Digits, cells, targets, keys and values of `count` examples.
    void load(const double* a, const double* b, int count) {
        alignas(64) double left[3][N];
        I digit[3][11];
        for (int i = 0; i < N; i++) {
            const bool real = i < count;
            is_real[i] = real;
            left[0][i] = real ? a[i] : 0;
            left[1][i] = real ? b[i] : 0;
            left[2][i] = left[0][i] + left[1][i];
        }
        for (int s = 0; s < 3; s++)
            for (int k = 0; k < 11; k++) {
                alignas(64) double rest[N];
                for (int i = 0; i < N; i++) {  // (x + 0.5) / 10 is never a whole number: floor is exact
                    const double tenth = std::floor((left[s][i] + 0.5) * 0.1);
                    rest[i] = left[s][i] - 10.0 * tenth;
                    left[s][i] = tenth;
                }
                for (int i = 0; i < N; i++) digit[s][k][i] = static_cast<int>(rest[i]);
            }
        const I zero = {};
        for (int t = 0; t < p.num_positions; t++) {
            const int place = p.place[t];
            switch (p.kind[t]) {
                case CONSTANT: cell[t] = zero; break;
                case PAIR: cell[t] = digit[0][place] * 10 + digit[1][place]; break;
                default: cell[t] = digit[p.kind[t] - DIGIT_A][place];
            }
            fetch(t, &Tables::Row::key, key[t]);
            fetch(t, &Tables::Row::value, value[t]);
        }
        for (int r = 0; r < p.num_rows; r++) target[r] = r < 11 ? digit[2][r] : zero + p.end;
    }

    template <int COUNT>
    INLINE void fetch(int t, V (Tables::Row::*field)[COUNT], V* out) {
        const int begin = cells.start[t];
        if (cells.start[t + 1] - begin == 1) {
            for (int f = 0; f < COUNT; f++) out[f] = look_up((table.rows[begin].*field)[f], cell[t]);
            return;
        }
        for (int i = 0; i < N; i++) {
            const V* from = table.rows[begin + cell[t][i] / N].*field;
            for (int f = 0; f < COUNT; f++) out[f][i] = from[f][cell[t][i] % N];
        }
    }

    // The forward pass of rows r0 .. r0 + ROWS - 1; rows beyond the last repeat it.
    void forward(int r0) {
        const int last = p.num_rows - 1;
        for (int r = 0; r < ROWS; r++) {
            const int t = first_row + std::min(r0 + r, last);
            fetch(t, &Tables::Row::query, query[r]);
            fetch(t, &Tables::Row::x, x[r]);
        }
        for (int head = 0; head < H; head++) attend(r0, head);
        for (int r = 0; r < ROWS; r++) {
            for (int d = 0; d < D; d++) {
                V made = x[r][d] + w[at.out_bias + d];
                for (int i = 0; i < INNER; i++) made += mixed[r][i] * w[at.out + i * D + d];
                y[r][d] = made;
            }
            norm_forward<T, D>(p.norm, T(p.eps), w + at.norm2, w + at.norm2 + D, y[r], h[r],
                               norm2[r]);
        }
        for (int f = 0; f < hidden; f++) hidden_feature(f);
        for (int d0 = 0; d0 < D; d0 += 4) {
            V made[ROWS][4];
            const int width = std::min(4, D - d0);
            for (int r = 0; r < ROWS; r++)
                for (int d = 0; d < 4; d++)
                    made[r][d] = d < width ? y[r][std::min(d0 + d, D - 1)] + w[at.down_bias + std::min(d0 + d, D - 1)]
                                           : V{};
            const T* down = w + at.down + d0;
            for (int f = 0; f < hidden; f++)
                for (int d = 0; d < 4; d++) {
                    const T factor = d < width ? down[f * D + d] : T(0);
                    for (int r = 0; r < ROWS; r++) made[r][d] += active[f][r] * factor;
                }
            for (int r = 0; r < ROWS; r++)
                for (int d = 0; d < width; d++) z[r][d0 + d] = made[r][d];
        }
        for (int r = 0; r < ROWS; r++)
            norm_forward<T, D>(p.norm, T(p.eps), w + at.norm_f, w + at.norm_f + D, z[r], hf[r],
                               norm_f[r]);
        for (int v = 0; v < vocabulary; v++) {
            V made[ROWS] = {};
            for (int d = 0; d < D; d++)
                for (int r = 0; r < ROWS; r++) made[r] += hf[r][d] * w[at.head + v * D + d];
            for (int r = 0; r < ROWS; r++) logit[v][r] = made[r];
        }
    }

    void attend(int r0, int head) {
        V best[ROWS], total[ROWS] = {};
        const int end = first_row + std::min(r0 + ROWS, int(p.num_rows));
        const int common = first_row + r0 + 1;  // positions that every row sees
        V(*e)[ROWS] = weight[head];
        for (int j = 0; j < end; j++)
            for (int r = 0; r < ROWS; r++) {
                V made = query[r][head * W] * key[j][head * W];
                for (int i = 1; i < W; i++) made += query[r][head * W + i] * key[j][head * W + i];
                e[j][r] = made;
                if (j == 0) best[r] = made;
                else if (sees(r0, r, j)) best[r] = made > best[r] ? made : best[r];
            }
        for (int j = 0; j < end; j++)
            for (int r = 0; r < ROWS; r++) {
                e[j][r] = j < common || sees(r0, r, j) ? vexp(e[j][r] - best[r]) : V{};
                total[r] += e[j][r];
            }
        for (int i0 = 0; i0 < W; i0 += 4) {
            V made[ROWS][4] = {};
            for (int j = 0; j < end; j++)
                for (int i = 0; i < 4; i++) {
                    const V v = value[j][head * W + std::min(i0 + i, W - 1)];
                    for (int r = 0; r < ROWS; r++) made[r][i] += e[j][r] * v;
                }
            for (int r = 0; r < ROWS; r++) {
                inverse[r][head] = T(1) / total[r];
                for (int i = 0; i < std::min(4, W - i0); i++)
                    mixed[r][head * W + i0 + i] = made[r][i] * inverse[r][head];
            }
        }
    }

    bool sees(int r0, int r, int j) const {
        return j <= first_row + std::min(r0 + r, int(p.num_rows) - 1);
    }

    INLINE void hidden_feature(int f) {
        V up[ROWS], gate[ROWS];
        for (int r = 0; r < ROWS; r++) up[r] = fill<V>(w[at.up_bias + f]);
        for (int d = 0; d < D; d++)
            for (int r = 0; r < ROWS; r++) up[r] += h[r][d] * up_t[f * D + d];
        if (!p.gated) {
            for (int r = 0; r < ROWS; r++) {
                V cumulative, density;
                normal(up[r], cumulative, density);
                active[f][r] = up[r] * cumulative;
                slope[f][r] = cumulative + up[r] * density;
            }
            return;
        }
        for (int r = 0; r < ROWS; r++) gate[r] = fill<V>(w[at.gate_bias + f]);
        for (int d = 0; d < D; d++)
            for (int r = 0; r < ROWS; r++) gate[r] += h[r][d] * gate_t[f * D + d];
        for (int r = 0; r < ROWS; r++) {
            const V s = sigmoid(gate[r]), silu = gate[r] * s;
            active[f][r] = silu * up[r];
            slope[f][r] = silu;
            slope_gate[f][r] = up[r] * s * (1 + gate[r] * (1 - s));
        }
    }

    // Cross-entropy of the rows; logits become probabilities minus the target. Rows that are
    // filling, and examples that are, count nothing.
    void cross_entropy(int r0) {
        for (int r = 0; r < ROWS; r++) {
            const bool used = r0 + r < p.num_rows;
            const I token = target[std::min(r0 + r, int(p.num_rows) - 1)];
            V best = logit[0][r], total = {}, chosen = {};
            for (int v = 1; v < vocabulary; v++) best = logit[v][r] > best ? logit[v][r] : best;
            for (int v = 0; v < vocabulary; v++) {
                const V shifted = logit[v][r] - best;
                chosen = token == v ? shifted : chosen;
                logit[v][r] = vexp(shifted);
                total += logit[v][r];
            }
            const V share = (used ? is_real : V{});
            const V factor = share / total;
            for (int v = 0; v < vocabulary; v++)
                logit[v][r] = logit[v][r] * factor - (token == v ? share : V{});
            if (!used) continue;
            loss_sum -= chosen;
            loss_product *= total;
        }
        flush_loss();
    }

    // The logarithm of four factors at once: each is between 1 and the vocabulary.
    void flush_loss() {
        for (int i = 0; i < N; i++) loss_sum[i] += std::log(loss_product[i]);
        loss_product = fill<V>(1);
    }

    void backward(int r0, Gradients& g) {
        V d_h[ROWS][D] = {}, d_z[ROWS][D], d_y[ROWS][D], d_mixed[ROWS][INNER];
        for (int v = 0; v < vocabulary; v++)
            for (int d = 0; d < D; d++) {
                V made = g.head[v * D + d];
                const T e = w[at.head + v * D + d];
                for (int r = 0; r < ROWS; r++) {
                    made += logit[v][r] * hf[r][d];
                    d_h[r][d] += logit[v][r] * e;
                }
                g.head[v * D + d] = made;
            }
        for (int r = 0; r < ROWS; r++) {
            norm_backward<T, D>(p.norm, w + at.norm_f, norm_f[r], d_h[r], d_z[r], g.norm_f,
                                g.norm_f + D);
            for (int d = 0; d < D; d++) g.down_bias[d] += d_z[r][d], d_h[r][d] = V{};
        }
        for (int f = 0; f < hidden; f++) hidden_backward(f, d_z, d_h, g);
        for (int r = 0; r < ROWS; r++) {
            norm_backward<T, D>(p.norm, w + at.norm2, norm2[r], d_h[r], d_y[r], g.norm2,
                                g.norm2 + D);
            for (int d = 0; d < D; d++) {
                d_y[r][d] += d_z[r][d];
                g.out_bias[d] += d_y[r][d];
                d_query[r][INNER + d] = d_y[r][d];
            }
        }
        for (int i = 0; i < INNER; i++) {
            V back[ROWS] = {};
            for (int d = 0; d < D; d++) {
                V made = g.out[i * D + d];
                const T o = w[at.out + i * D + d];
                for (int r = 0; r < ROWS; r++) {
                    made += mixed[r][i] * d_y[r][d];
                    back[r] += d_y[r][d] * o;
                }
                g.out[i * D + d] = made;
            }
            for (int r = 0; r < ROWS; r++) d_mixed[r][i] = back[r];
        }
        for (int head = 0; head < H; head++) attend_backward(r0, head, d_mixed);
        scatter_queries(r0, g);
    }

    INLINE void hidden_backward(int f, V (*d_z)[D], V (*d_h)[D], Gradients& g) {
        V d_up[ROWS] = {}, d_gate[ROWS];
        for (int d = 0; d < D; d++) {
            V made = g.down[f * D + d];
            const T factor = w[at.down + f * D + d];
            for (int r = 0; r < ROWS; r++) {
                made += active[f][r] * d_z[r][d];
                d_up[r] += d_z[r][d] * factor;
            }
            g.down[f * D + d] = made;
        }
        if (p.gated)
            for (int r = 0; r < ROWS; r++) {
                d_gate[r] = d_up[r] * slope_gate[f][r];
                g.gate_bias[f] += d_gate[r];
            }
        for (int r = 0; r < ROWS; r++) {
            d_up[r] *= slope[f][r];
            g.up_bias[f] += d_up[r];
        }
        into(f, d_up, d_h, up_t, g.up);
        if (p.gated) into(f, d_gate, d_h, gate_t, g.gate);
    }

    // From hidden feature f back to its inputs, and to its row of the (transposed) matrix.
    INLINE void into(int f, const V* d_out, V (*d_h)[D], const T* matrix_t, V* d_matrix_t) {
        for (int d = 0; d < D; d++) {
            V made = d_matrix_t[f * D + d];
            const T factor = matrix_t[f * D + d];
            for (int r = 0; r < ROWS; r++) {
                made += h[r][d] * d_out[r];
                d_h[r][d] += d_out[r] * factor;
            }
            d_matrix_t[f * D + d] = made;
        }
    }

    void attend_backward(int r0, int head, V (*d_mixed)[INNER]) {
        const int end = first_row + std::min(r0 + ROWS, int(p.num_rows));
        const int k = head * W;
        V along[ROWS] = {};
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < W; i++) along[r] += d_mixed[r][k + i] * mixed[r][k + i];
        V(*e)[ROWS] = weight[head];
        for (int j = 0; j < end; j++) {
            V share[ROWS], d_score[ROWS];
            for (int r = 0; r < ROWS; r++) {
                V made = d_mixed[r][k] * value[j][k];
                for (int i = 1; i < W; i++) made += d_mixed[r][k + i] * value[j][k + i];
                share[r] = e[j][r] * inverse[r][head];
                d_score[r] = e[j][r] = share[r] * (made - along[r]);
            }
            for (int i = 0; i < W; i++) {
                V of_key = d_key[j][k + i], of_value = d_key[j][INNER + k + i];
                for (int r = 0; r < ROWS; r++) {
                    of_key += d_score[r] * query[r][k + i];
                    of_value += share[r] * d_mixed[r][k + i];
                }
                d_key[j][k + i] = of_key;
                d_key[j][INNER + k + i] = of_value;
            }
        }
        for (int i0 = 0; i0 < W; i0 += 4) {
            V made[ROWS][4] = {};
            for (int j = 0; j < end; j++)
                for (int i = 0; i < 4; i++) {
                    const V factor = key[j][k + std::min(i0 + i, W - 1)];
                    for (int r = 0; r < ROWS; r++) made[r][i] += e[j][r] * factor;
                }
            for (int r = 0; r < ROWS; r++)
                for (int i = 0; i < std::min(4, W - i0); i++) d_query[r][k + i0 + i] = made[r][i];
        }
    }

    void scatter(int t, const V* block, T* rows) {
        T* row[N];
        for (int i = 0; i < N; i++) row[i] = rows + (cells.start[t] * N + cell[t][i]) * FEATURES;
        add_transposed(block, row);
    }

    void scatter_queries(int r0, Gradients& g) {
        for (int r = 0; r < ROWS && r0 + r < p.num_rows; r++)
            scatter(first_row + r0 + r, d_query[r], g.qx);
    }

    void train(Gradients& g) {
        std::memset(d_key, 0, sizeof d_key);
        std::memset(d_query, 0, sizeof d_query);
        for (int r0 = 0; r0 < p.num_rows; r0 += ROWS) {
            forward(r0);
            cross_entropy(r0);
            backward(r0, g);
        }
        for (int t = 0; t < p.num_positions; t++) scatter(t, d_key[t], g.kv);
    }

    // Bits of the wrong digits of every example.
    void judge(I& wrong) {
        wrong = I{};
        for (int r0 = 0; r0 < p.num_rows; r0 += ROWS) {
            forward(r0);
            for (int r = 0; r < ROWS && r0 + r < std::min(11, int(p.num_rows)); r++) {
                V best = logit[0][r];
                I which = {};
                for (int v = 1; v < vocabulary; v++) {
                    const auto more = logit[v][r] > best;
                    which = more ? I{} + v : which;
                    best = more ? logit[v][r] : best;
                }
                // A NaN is larger than nothing and equal to nothing: never a right digit.
                const auto right = (which == target[r0 + r]) & (best == best);
                wrong |= right ? I{} : I{} + (1 << (r0 + r));
            }
            cross_entropy(r0);
        }
    }
};
