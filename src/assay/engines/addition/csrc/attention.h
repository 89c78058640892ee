// Attention of a Group, forward and backward: included at the end of group.h.
#pragma once

// Attention of all rows: first scores, a few positions at a time, then sums, a few rows at a
// time. `weight` is zero where a row does not see a position, and behind the last position.
template <class T, int D, int H, int W>
void Group<T, D, H, W>::attend(int head) {
    const int k = head * W;
    for (int j0 = 0; j0 < p.num_positions; j0 += ROWS) {
        const Rows<ROWS, W, V> held(key[j0] + k, INNER);
        for (int r = first_seeing(j0); r < num_rows; r++) {
            V made[ROWS] = {};
            held.dot(r, lines<INNER>(query[0] + k), made);
            repeat<ROWS>([&](auto j) LAMBDA { weight[head][r][j0 + j] = made[j]; });
        }
    }
    for (int r = 0; r < num_rows; r++) soften(r, head);
    for (int r0 = 0; r0 < num_rows; r0 += ROWS) {
        Rows<ROWS, W, V> made;
        made.clear();
        for (int j = 0; j < seen(r0 + ROWS - 1); j++)
            made.add(j, columns(weight[head], r0, j).at, lines<INNER>(value[0] + k));
        repeat<ROWS>([&](auto r) LAMBDA {
            repeat<W>([&](auto i) LAMBDA { mixed[r0 + r][k + i] = made.at[r][i] * inverse[r0 + r][head]; });
        });
    }
}

template <class T, int D, int H, int W>
void Group<T, D, H, W>::soften(int r, int head) {
    V* e = weight[head][r];
    const int end = seen(r);
    V best = e[0], total = {};
    for (int j = 1; j < end; j++) best = best > e[j] ? best : e[j];
    for (int j = 0; j < end; j++) {
        e[j] = vexp2(e[j] - best);
        total += e[j];
    }
    for (int j = end; j < (p.num_positions + ROWS - 1) / ROWS * ROWS; j++) e[j] = V{};
    inverse[r][head] = T(1) / total;
}

// Gradients of the weights of attention, and what they come to on the mean.
template <class T, int D, int H, int W>
void Group<T, D, H, W>::weigh_backward(int head) {
    const int k = head * W;
    V along[MAX_ROWS] = {};
    for (int r = 0; r < num_rows; r++)
        for (int i = 0; i < W; i++) d_mixed[r][k + i] *= inverse[r][head];
    for (int j0 = 0; j0 < p.num_positions; j0 += ROWS) {
        const Rows<ROWS, W, V> held(value[j0] + k, INNER);
        for (int r = first_seeing(j0); r < num_rows; r++) {
            V made[ROWS] = {};
            held.dot(r, lines<INNER>(d_mixed[0] + k), made);
            repeat<ROWS>([&](auto j) LAMBDA {
                d_weight[head][r][j0 + j] = made[j];
                along[r] += weight[head][r][j0 + j] * made[j];
            });
        }
    }
    // The mean is one of the very numbers it is taken from: where a row looks at one position
    // only, the difference is exactly zero.
    for (int r = 0; r < num_rows; r++) {
        const V mean = along[r] * inverse[r][head];
        for (int j = 0; j < seen(r); j++) d_weight[head][r][j] -= mean;
    }
}

template <class T, int D, int H, int W>
void Group<T, D, H, W>::attend_backward(Gradients& g) {
    for (int head = 0; head < H; head++) weigh_backward(head);
    for (int j0 = 0; j0 < p.num_positions; j0 += ROWS) {
        for (int head = 0; head < H; head++) {
            const int k = head * W;
            Rows<ROWS, W, V> made;
            made.clear();
            for (int r = first_seeing(j0); r < num_rows; r++)
                made.add(r, weight[head][r] + j0, lines<INNER>(d_mixed[0] + k));
            made.store(d_cell[0] + INNER + k, FEATURES);
            made.clear();
            for (int r = first_seeing(j0); r < num_rows; r++) {
                V* e = weight[head][r] + j0;
                repeat<ROWS>([&](auto j) LAMBDA { e[j] *= d_weight[head][r][j0 + j]; });
                made.add(r, e, lines<INNER>(query[0] + k));
            }
            made.store(d_cell[0] + k, FEATURES);
        }
        for (int j = j0; j < std::min(j0 + ROWS, int(p.num_positions)); j++)
            scatter(j, 0, d_cell[j - j0], g.kv);
    }
    for (int r0 = 0; r0 < num_rows; r0 += ROWS) {
        for (int head = 0; head < H; head++) {
            const int k = head * W;
            Rows<ROWS, W, V> made;
            made.clear();
            for (int j = 0; j < seen(r0 + ROWS - 1); j++)
                made.add(j, columns(weight[head], r0, j).at, lines<INNER>(key[0] + k));
            made.store(d_cell[0] + k, FEATURES);
        }
        for (int r = 0; r < ROWS && r0 + r < p.num_rows; r++) {
            for (int d = 0; d < D; d++) d_cell[r][INNER + d] = d_y[r0 + r][d];
            scatter(first_row + r0 + r, first_row, d_cell[r], g.qx);
        }
    }
}
