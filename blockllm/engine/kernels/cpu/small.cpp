// The small operations of a decoder layer in fp32: what is left of a step between the big linears and
// attention. Every function has a plain twin in kernels/plain.py. All row counts and sizes are
// checked by the Python side. Threads come from torch's OpenMP pool.

#include "kernels.h"
#include "small.h"

using namespace blockllm;

extern "C" {

// Rotate the query and key heads of qkv [rows, heads + 2 kv_heads, dim] in place, then put keys
// and values on their pages. cos, sin: [.., dim], both halves alike; rotations: which of them is
// each row's, null if they are in order.
void rotate_and_write(float* qkv, const float* cos, const float* sin, const int64_t* rotations,
                      float* keys, int64_t page_stride, int64_t value_stride, const int64_t* write_pages,
                      const int64_t* write_offsets, int64_t rows, int64_t heads, int64_t kv_heads,
                      int64_t dim, int64_t page_size, int threads) {
    const int64_t row_size = (heads + 2 * kv_heads) * dim;
#pragma omp parallel for num_threads(threads) if (rows * row_size > 16384)
    for (int64_t r = 0; r < rows; ++r) {
        float* row = qkv + r * row_size;
        const int64_t own = (rotations ? rotations[r] : r) * dim;
        rotate_heads(row, heads + kv_heads, cos + own, sin + own, dim);
        float* key = keys + write_pages[r] * page_stride + write_offsets[r] * dim;
        const float* states = row + heads * dim;
        write_heads(key, states, kv_heads, dim, page_size);
        write_heads(key + value_stride, states + kv_heads * dim, kv_heads, dim, page_size);
    }
}

// out = x / rms(x) * weight over the last dimension; rows of x lie x_stride apart in groups of
// `inner` neighbouring vectors (inner > 1: heads inside a fused row). out may be x.
void rms_norm(float* out, const float* x, const float* weight, int64_t rows, int64_t inner,
              int64_t dim, int64_t out_stride, int64_t x_stride, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * inner * dim > 16384)
    for (int64_t task = 0; task < rows * inner; ++task) {
        const float* from = x + task / inner * x_stride + task % inner * dim;
        float* to = out + task / inner * out_stride + task % inner * dim;
        norm_vector(to, from, weight, dim, eps);
    }
}

// out [rows, size] = silu(gate) * up, where gate_up is [rows, 2 * size]
void silu_multiply(float* out, const float* gate_up, int64_t rows, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > 16384)
    for (int64_t r = 0; r < rows; ++r) {
        const float* gate = gate_up + r * 2 * size;
        gate_vector(out + r * size, gate, gate + size, size);
    }
}

}  // extern "C"
