// LayerNorm and RMSNorm of a feature vector, examples in the lanes.
#pragma once
#include "problem.h"
#include "simd.h"

template <class V, int D>
struct Normed {
    V unit[D];  // before weight and bias
    V inverse;
};

template <class T, int D, class V = typename Simd<T>::V>
INLINE void norm_forward(int kind, T eps, const T* weight, const T* bias, const V* x, V* out,
                         Normed<V, D>& kept) {
    if (kind == NO_NORM) {
        for (int d = 0; d < D; d++) out[d] = x[d];
        return;
    }
    V mean = {};
    if (kind == LAYER_NORM) {
        for (int d = 0; d < D; d++) mean += x[d];
        mean *= T(1) / D;
    }
    V square = {};
    for (int d = 0; d < D; d++) {
        kept.unit[d] = x[d] - mean;
        square += kept.unit[d] * kept.unit[d];
    }
    kept.inverse = T(1) / vsqrt(square * (T(1) / D) + eps);
    for (int d = 0; d < D; d++) {
        kept.unit[d] *= kept.inverse;
        out[d] = kept.unit[d] * weight[d];
        if (kind == LAYER_NORM) out[d] += bias[d];
    }
}

// Gradient of x from that of the output; adds the gradients of weight and bias, lane by lane.
template <class T, int D, class V = typename Simd<T>::V>
INLINE void norm_backward(int kind, const T* weight, const Normed<V, D>& kept, const V* d_out,
                          V* d_x, V* d_weight, V* d_bias) {
    if (kind == NO_NORM) {
        for (int d = 0; d < D; d++) d_x[d] = d_out[d];
        return;
    }
    V mean = {}, along = {};
    for (int d = 0; d < D; d++) {
        d_weight[d] += d_out[d] * kept.unit[d];
        if (kind == LAYER_NORM) d_bias[d] += d_out[d];
        d_x[d] = d_out[d] * weight[d];
        mean += d_x[d];
        along += d_x[d] * kept.unit[d];
    }
    along *= T(1) / D;
    mean = kind == LAYER_NORM ? mean * (T(1) / D) : mean * T(0);
    for (int d = 0; d < D; d++) d_x[d] = (d_x[d] - mean - kept.unit[d] * along) * kept.inverse;
}
