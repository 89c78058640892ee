// The block for N examples at once, one in each lane. Attention is worked through for all supervised
// rows, the rest for ROWS of them at a time: whatever a loop reads again stays in registers or in
// the first-level cache. Scores and logits are powers of two: log2(e) is in the queries and heads.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "products.h"
#include "table.h"

template <class T, int D, int H, int W>
struct Group {
    static constexpr int N = Simd<T>::N, INNER = H * W;
    static constexpr int POSITIONS = MAX_POSITIONS + ROWS;  // with filling behind the last
    typedef typename Simd<T>::V V;
    typedef typename Simd<T>::I I;
    typedef std::remove_reference_t<decltype(I{}[0])> Whole;
    typedef Table<T, D, H, W> Tables;

    // Gradients of a tile: by cell, and lane by lane for the weights of the rows.
    struct Gradients {
        V out[INNER * D], out_bias[D], norm2[2 * D], up[D * MAX_HIDDEN], up_bias[MAX_HIDDEN];
        V gate[D * MAX_HIDDEN], gate_bias[MAX_HIDDEN], down[MAX_HIDDEN * D], down_bias[D];
        V norm_f[2 * D], head[MAX_VOCABULARY * D];
        T *kv, *qx;  // [cells][FEATURES]; of all positions, and of the supervised ones

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
    const int num_rows;  // with filling: a multiple of ROWS

    I cell[MAX_POSITIONS];                      // of each example, within its position
    I target[MAX_POSITIONS];                    // tokens that the supervised rows must predict
    V is_real;                                  // 1 for an example, 0 for filling
    V key[POSITIONS][INNER], value[POSITIONS][INNER];
    V d_cell[ROWS][FEATURES];                   // of positions: [key | value]; of rows: [query | x]
    V weight[H][MAX_ROWS][POSITIONS];           // of attention; then gradients of scores
    V d_weight[H][MAX_ROWS][POSITIONS];
    V query[MAX_ROWS][INNER], mixed[MAX_ROWS][INNER], d_mixed[MAX_ROWS][INNER], d_y[MAX_ROWS][D];
    V inverse[MAX_ROWS][H];
    V x[ROWS][D];
    V y[ROWS][D], h[ROWS][D], z[ROWS][D], hf[ROWS][D];
    V active[MAX_HIDDEN][ROWS], slope[MAX_HIDDEN][ROWS], slope_gate[MAX_HIDDEN][ROWS];
    V logit[MAX_VOCABULARY][ROWS];
    Normed<V, D> norm2[ROWS], norm_f[ROWS];
    V loss_product, loss_sum;
    T up_t[MAX_HIDDEN * D], gate_t[MAX_HIDDEN * D];  // transposed, for reading along rows
    T head2[MAX_VOCABULARY * D];                     // so that logits are powers of two

    Group(const Problem& problem, const Offsets& offsets, const Cells<N>& places, const T* weights,
          const Tables& tables)
        : p(problem), at(offsets), cells(places), w(weights), table(tables), hidden(problem.hidden),
          vocabulary(problem.vocabulary), first_row(problem.num_positions - problem.num_rows),
          num_rows((problem.num_rows + ROWS - 1) / ROWS * ROWS) {
        for (int t = p.num_positions; t < p.num_positions + ROWS; t++)
            for (int i = 0; i < INNER; i++) key[t][i] = value[t][i] = V{};
        std::memset(static_cast<void*>(d_cell), 0, sizeof d_cell);  // also the unused features
        for (int i = 0; i < vocabulary * D; i++) head2[i] = w[at.head + i] * T(LOG2_E);
        for (int f = 0; f < hidden; f++)
            for (int d = 0; d < D; d++) {
                up_t[f * D + d] = w[at.up + d * hidden + f];
                if (p.gated) gate_t[f * D + d] = w[at.gate + d * hidden + f];
            }
    }

    // Digits, cells, targets, keys and values of `count` examples. Filling repeats the first.
    void load(const double* a, const double* b, int count) {
        alignas(64) double left[3][N];
        I digit[3][11];
        for (int i = 0; i < N; i++) {
            const int from = i < count ? i : 0;
            is_real[i] = i < count;
            left[0][i] = a[from];
            left[1][i] = b[from];
            left[2][i] = a[from] + b[from];
        }
        for (int s = 0; s < 3; s++)
            for (int k = 0; k < 11; k++) {
                alignas(64) Whole rest[N];
                for (int i = 0; i < N; i++) {  // (x + 0.5) / 10 is never a whole number: floor is exact
                    const double tenth = std::floor((left[s][i] + 0.5) * 0.1);
                    rest[i] = static_cast<Whole>(static_cast<int>(left[s][i] - 10.0 * tenth));
                    left[s][i] = tenth;
                }
                std::memcpy(&digit[s][k], rest, sizeof rest);
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
        if (cells.start[t + 1] - begin == 2) {
            const auto &from = table.rows[begin].*field, &more = table.rows[begin + 1].*field;
            for (int f = 0; f < COUNT; f++) out[f] = look_up(from[f], more[f], cell[t]);
            return;
        }
        for (int i = 0; i < N; i++) {
            const V* from = table.rows[begin + cell[t][i] / N].*field;
            for (int f = 0; f < COUNT; f++) out[f][i] = from[f][cell[t][i] % N];
        }
    }

    // The forward pass of rows r0 .. r0 + ROWS - 1 behind attention; rows beyond the last repeat it.
    void forward(int r0) {
        for (int r = 0; r < ROWS; r++) {
            fetch(first_row + std::min(r0 + r, p.num_rows - 1), &Tables::Row::x, x[r]);
            repeat<D>([&](auto d) LAMBDA {
                V made = x[r][d] + w[at.out_bias + d];
                repeat<INNER>([&](auto i) LAMBDA { made += mixed[r0 + r][i] * w[at.out + i * D + d]; });
                y[r][d] = made;
            });
            norm_forward<T, D>(p.norm, T(p.eps), w + at.norm2, w + at.norm2 + D, y[r], h[r],
                               norm2[r]);
        }
        feed_forward();
        for (int r = 0; r < ROWS; r++)
            norm_forward<T, D>(p.norm, T(p.eps), w + at.norm_f, w + at.norm_f + D, z[r], hf[r],
                               norm_f[r]);
        const Rows<ROWS, D, V> held(hf[0], D);
        for (int v = 0; v < vocabulary; v++) {
            V made[ROWS] = {};
            held.dot(v, lines<D>(head2), made);
            repeat<ROWS>([&](auto r) LAMBDA { logit[v][r] = made[r]; });
        }
    }

    // Reads line j of a matrix whose lines are N numbers or vectors, STRIDE apart.
    template <int STRIDE, class Number>
    static INLINE auto lines(const Number* matrix) {
        return [matrix](int j, auto d) LAMBDA { return matrix[j * STRIDE + d]; };
    }

    void attend(int head);

    // Positions that a row sees; rows that are filling see as many as the last.
    int seen(int r) const { return first_row + 1 + std::min(r, p.num_rows - 1); }

    // The first row that sees position j.
    int first_seeing(int j) const { return std::max(0, j - first_row); }

    struct Column {
        V at[ROWS];
    };

    static INLINE Column columns(const V (*rows)[POSITIONS], int r0, int j) {
        Column made;
        repeat<ROWS>([&](auto r) LAMBDA { made.at[r] = rows[r0 + r][j]; });
        return made;
    }

    void soften(int r, int head);

    void feed_forward() {
        {
            const Rows<ROWS, D, V> held(h[0], D);
            for (int f = 0; f < hidden; f++) {
                V up[ROWS];
                repeat<ROWS>([&](auto r) LAMBDA { up[r] = fill<V>(w[at.up_bias + f]); });
                held.dot(f, lines<D>(up_t), up);
                repeat<ROWS>([&](auto r) LAMBDA { active[f][r] = up[r]; });
            }
            for (int f = 0; p.gated && f < hidden; f++) {
                V gate[ROWS];
                repeat<ROWS>([&](auto r) LAMBDA { gate[r] = fill<V>(w[at.gate_bias + f]); });
                held.dot(f, lines<D>(gate_t), gate);
                repeat<ROWS>([&](auto r) LAMBDA { slope_gate[f][r] = gate[r]; });
            }
        }
        const PhiTable& table = phi_table();
        V *of_active = active[0], *of_slope = slope[0], *of_gate = slope_gate[0];
        for (int i = 0; i < hidden * ROWS; i++) {
            const V up = of_active[i];
            if (!p.gated) {
                gelu(table, up, of_active[i], of_slope[i]);
                continue;
            }
            const V gate = of_gate[i], s = sigmoid(gate), silu = gate * s;
            of_active[i] = silu * up;
            of_slope[i] = silu;
            of_gate[i] = up * s * (1 + gate * (1 - s));
        }
        Rows<ROWS, D, V> made;
        repeat<ROWS>([&](auto r) LAMBDA {
            repeat<D>([&](auto d) LAMBDA { made.at[r][d] = y[r][d] + w[at.down_bias + d]; });
        });
        for (int f = 0; f < hidden; f++) made.add(f, active[f], lines<D>(w + at.down));
        made.store(z[0], D);
    }

    // Cross-entropy of the rows; logits (in powers of two) become probabilities minus the target.
    // Rows that are filling, and examples that are, count nothing.
    void cross_entropy(int r0) {
        for (int r = 0; r < ROWS; r++) {
            const bool used = r0 + r < p.num_rows;
            const I token = target[std::min(r0 + r, int(p.num_rows) - 1)];
            V best = logit[0][r], total = {}, chosen = {};
            for (int v = 1; v < vocabulary; v++) best = logit[v][r] > best ? logit[v][r] : best;
            for (int v = 0; v < vocabulary; v++) {
                const V shifted = logit[v][r] - best;
                chosen = token == v ? shifted : chosen;
                logit[v][r] = vexp2(shifted);
                total += logit[v][r];
            }
            const V share = (used ? is_real : V{});
            const V factor = share / total;
            for (int v = 0; v < vocabulary; v++) {
                const V part = logit[v][r] * factor;
                logit[v][r] = token == v ? part - share : part;
            }
            if (!used) continue;
            loss_sum -= chosen * T(LN_2);
            loss_product *= total;
        }
        flush_loss();
    }

    // The logarithm of the factors of all rows at once: each is between 1 and the vocabulary.
    void flush_loss() {
        for (int i = 0; i < N; i++) loss_sum[i] += std::log(loss_product[i]);
        loss_product = fill<V>(1);
    }

    void backward(int r0, Gradients& g) {
        V d_h[ROWS][D], d_z[ROWS][D];
        {
            const Rows<ROWS, D, V> held(hf[0], D);
            for (int v = 0; v < vocabulary; v++) held.outer(logit[v], g.head + v * D);
            Rows<ROWS, D, V> made;
            made.clear();
            for (int v = 0; v < vocabulary; v++) made.add(v, logit[v], lines<D>(w + at.head));
            made.store(d_h[0], D);
        }
        for (int r = 0; r < ROWS; r++) {
            norm_backward<T, D>(p.norm, w + at.norm_f, norm_f[r], d_h[r], d_z[r], g.norm_f,
                                g.norm_f + D);
            for (int d = 0; d < D; d++) g.down_bias[d] += d_z[r][d];
        }
        feed_backward(d_z, d_h, g);
        for (int r = 0; r < ROWS; r++) {
            norm_backward<T, D>(p.norm, w + at.norm2, norm2[r], d_h[r], d_y[r0 + r], g.norm2,
                                g.norm2 + D);
            for (int d = 0; d < D; d++) {
                d_y[r0 + r][d] += d_z[r][d];
                g.out_bias[d] += d_y[r0 + r][d];
            }
        }
        {
            const Rows<ROWS, D, V> held(d_y[r0], D);
            for (int i = 0; i < INNER; i++) {
                V back[ROWS] = {}, share[ROWS];
                held.dot(i, lines<D>(w + at.out), back);
                repeat<ROWS>([&](auto r) LAMBDA { share[r] = mixed[r0 + r][i], d_mixed[r0 + r][i] = back[r]; });
                held.outer(share, g.out + i * D);
            }
        }
    }

    void feed_backward(V (*d_z)[D], V (*d_h)[D], Gradients& g) {
        {
            const Rows<ROWS, D, V> held(d_z[0], D);
            for (int f = 0; f < hidden; f++) {
                V d_up[ROWS] = {};
                held.outer(active[f], g.down + f * D);
                held.dot(f, lines<D>(w + at.down), d_up);
                if (p.gated)
                    repeat<ROWS>([&](auto r) LAMBDA {
                        slope_gate[f][r] *= d_up[r];
                        g.gate_bias[f] += slope_gate[f][r];
                    });
                repeat<ROWS>([&](auto r) LAMBDA {
                    slope[f][r] *= d_up[r];
                    g.up_bias[f] += slope[f][r];
                });
            }
        }
        {
            Rows<ROWS, D, V> made;
            made.clear();
            for (int f = 0; f < hidden; f++) made.add(f, slope[f], lines<D>(up_t));
            for (int f = 0; p.gated && f < hidden; f++) made.add(f, slope_gate[f], lines<D>(gate_t));
            made.store(d_h[0], D);
        }
        const Rows<ROWS, D, V> held(h[0], D);
        for (int f = 0; f < hidden; f++) held.outer(slope[f], g.up + f * D);
        for (int f = 0; p.gated && f < hidden; f++) held.outer(slope_gate[f], g.gate + f * D);
    }

    void weigh_backward(int head);

    void attend_backward(Gradients& g);

    // Adds 16 features of every example to the rows of its cells; `rows` begins at position t0.
    void scatter(int t, int t0, const V* block, T* rows) {
        alignas(64) Whole at[N];
        std::memcpy(at, &cell[t], sizeof at);
        T* row[N];
        T* begin = rows + size_t(cells.start[t] - cells.start[t0]) * N * FEATURES;
        for (int i = 0; i < N; i++) row[i] = begin + at[i] * FEATURES;
        add_transposed(block, row);
    }

    void look() {
        for (int r = 0; r < num_rows; r++)
            fetch(first_row + std::min(r, p.num_rows - 1), &Tables::Row::query, query[r]);
        for (int head = 0; head < H; head++) attend(head);
    }

    void train(Gradients& g) {
        look();
        for (int r0 = 0; r0 < p.num_rows; r0 += ROWS) {
            forward(r0);
            cross_entropy(r0);
            backward(r0, g);
        }
        attend_backward(g);
    }

    // Bits of the wrong digits of every example.
    void judge(I& wrong) {
        wrong = I{};
        look();
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

#include "attention.h"
