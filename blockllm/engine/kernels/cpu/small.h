// The small operations of a decoder layer, for one vector or row. See small.cpp.
#pragma once

#include "exponential.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace blockllm {

// to = from / rms(from) * weight; to may be from
inline void norm_vector(float* to, const float* from, const float* weight, int64_t dim, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < dim; ++d) sum += from[d] * from[d];
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(dim) + eps);
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) to[d] = from[d] * scale * weight[d];
}

// `count` neighbouring heads, in place; both halves of cos and sin are alike
inline void rotate_heads(float* heads, int64_t count, const float* cos, const float* sin,
                         int64_t dim) {
    const int64_t half = dim / 2;
    for (int64_t h = 0; h < count; ++h) {
        float *left = heads + h * dim, *right = left + half;
#pragma omp simd
        for (int64_t d = 0; d < half; ++d) {
            const float a = left[d], b = right[d];
            left[d] = a * cos[d] - b * sin[d];
            right[d] = b * cos[d + half] + a * sin[d + half];
        }
    }
}

// One token's keys or values of `count` heads to their page: heads lie page_size * dim apart there.
inline void write_heads(float* to, const float* heads, int64_t count, int64_t dim,
                        int64_t page_size) {
    for (int64_t h = 0; h < count; ++h)
        std::memcpy(to + h * page_size * dim, heads + h * dim, dim * sizeof(float));
}

// to = relu(gate) * up
inline void relu_vector(float* to, const float* gate, const float* up, int64_t size) {
#pragma omp simd
    for (int64_t d = 0; d < size; ++d) to[d] = (gate[d] < 0 ? 0.0f : gate[d]) * up[d];
}

// to = silu(gate) * up
inline void gate_vector(float* to, const float* gate, const float* up, int64_t size) {
#pragma omp simd
    for (int64_t d = 0; d < size; ++d) {
        // of the two forms of the sigmoid, the one whose exponent is not positive
        const float e = exp_negative(gate[d] > 0 ? -gate[d] : gate[d]);
        const float sigmoid = (gate[d] > 0 ? 1.0f : e) / (1.0f + e);
        to[d] = gate[d] * sigmoid * up[d];
    }
}

}  // namespace blockllm
